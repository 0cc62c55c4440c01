"""Names of the statistics that every pass returns, in the order of ``enum Stat`` in ``csrc/core/stats.h``."""

from __future__ import annotations

from typing import NamedTuple

import torch

STAT_NAMES = (
    "actor/pg_clipfrac",
    "actor/ppo_kl",
    "actor/pg_clipfrac_lower",
    "actor/maspo_gate_mean_pos",
    "actor/maspo_gate_mean_neg",
    "actor/maspo_gated_frac_pos",
    "actor/maspo_gated_frac_neg",
    "actor/maspo_sigma_mean",
    "actor/ratio_min",
    "actor/ratio_mean",
    "actor/ratio_max",
    "actor/log_ratio_clamped_frac",
    "actor/nonfinite_count",
)


class PolicyLossStats(NamedTuple):
    """The statistics of one pass; they stay on the device until someone asks.

    All are over unmasked tokens, weighted by the mask; of a batch without tokens all are 0.

    * ``actor/pg_clipfrac``, ``actor/pg_clipfrac_lower``: fraction of tokens that a PPO clip (``clip_ratio_low/high``) and a
      dual clip (``clip_ratio_c``) would clip, as in verl. MASPO does not apply them.
    * ``actor/ppo_kl``: mean of ``old_log_prob - log_prob`` (clamped to +-20), nats per token.
    * ``actor/maspo_gate_mean_pos/neg``: mean gate over the tokens gated on that side (A > 0 with ratio > 1, A < 0 with
      ratio < 1); 1 if there is none. ``actor/maspo_gated_frac_pos/neg``: the fraction of tokens that are.
    * ``actor/maspo_sigma_mean``: mean width of the gate, of all tokens, each with the side of its advantage.
    * ``actor/ratio_min/mean/max``: of ``exp(log_prob - old_log_prob)``; min and max skip NaN.
    * ``actor/log_ratio_clamped_frac``: fraction of tokens with ``|log_prob - old_log_prob| > 20`` (or NaN).
    * ``actor/nonfinite_count``: number of unmasked tokens with NaN or inf in any input.

    Attributes:
        tensor: float64 ``[len(STAT_NAMES)]``, on the device of the inputs.
    """

    tensor: torch.Tensor

    def to_dict(self) -> dict[str, float]:
        """All statistics as python floats, by one copy from the device (which waits for it)."""
        return dict(zip(STAT_NAMES, self.tensor.tolist(), strict=True))
