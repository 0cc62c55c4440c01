"""Names of the statistics that every pass returns, in the order of ``enum Stat`` in ``csrc/core/stats.h``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from maspo_ext.config import config_class_of
from maspo_ext.errors import did_you_mean, message

_OF_CLIP = ("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower")
METHOD_SLOTS = 5
_OF_RATIO = (
    "actor/ratio_min",
    "actor/ratio_mean",
    "actor/ratio_max",
    "actor/log_ratio_clamped_frac",
    "actor/nonfinite_count",
)
# Follows the statistics of linear_loss on a GPU, which does not wait to see its targets.
INVALID_TARGETS = "actor/invalid_target_count"
NUM_STATS = len(_OF_CLIP) + METHOD_SLOTS + len(_OF_RATIO) + 3


def stat_names(
    ratio_mode: str = "maspo", *, entropy_adv: bool = False, ref_kl: bool = False, rollout_is: bool = False
) -> tuple[str | None, ...]:
    """The name of each of the ``NUM_STATS`` numbers that ``torch.ops.maspo.loss`` returns; None where it has no meaning.

    Args:
        ratio_mode: the method; a key of ``maspo_ext.RATIO_MODES``.
        entropy_adv, ref_kl, rollout_is: whether the call had ``entropy``, ``ref_log_prob``, or a bound of the rollout's weights.

    Raises:
        ValueError: there is no such mode.
    """
    config_class = config_class_of(ratio_mode)
    of_method = config_class.stat_names + (None,) * (METHOD_SLOTS - len(config_class.stat_names))
    of_options = (
        "actor/entropy_adv_bonus" if entropy_adv else None,
        "actor/ref_kl" if ref_kl else None,
        "actor/rollout_is_outside_frac" if rollout_is else None,
    )
    return _OF_CLIP + of_method + _OF_RATIO + of_options


class PolicyLossStats(NamedTuple):
    """The statistics of one pass; they stay on the device until someone asks.

    All are over unmasked tokens, weighted by the mask; of a batch without tokens all are 0, but for what BAPO's search ends with.

    * ``actor/pg_clipfrac``, ``actor/pg_clipfrac_lower``: fraction of tokens that the method's clip and the dual clip
      (``clip_ratio_c``) stop. For MASPO, as in its reference: those that PPO's would; it applies neither. For SAPO: 0 and 0,
      unless it is given a dual clip.
    * ``actor/ppo_kl``: mean of ``old_log_prob - log_prob`` (clamped to +-20; for DAC not), nats per token.
    * ``actor/maspo_gate_mean_pos/neg``: mean gate over the tokens gated on that side (A > 0 with ratio > 1, A < 0 with
      ratio < 1); 1 if there is none. ``actor/maspo_gated_frac_pos/neg``: the fraction of tokens that are.
    * ``actor/maspo_sigma_mean``: mean width of the gate, of all tokens, each with the side of its advantage.
    * ``actor/sapo_gate_mean_pos/neg``: mean of ``sech^2(tau (ratio - 1) / 2)`` over the tokens with A > 0 and with A < 0, the
      ratio as the dual clip leaves it; 1 if there is none.
    * ``actor/dac_clip_low_mean``, ``actor/dac_clip_high_mean``: mean bounds of the ratio.
    * ``actor/bapo_clip_low``, ``actor/bapo_clip_high``, ``actor/bapo_pos_neg_ratio``: the bounds found, and the quotient there
      (inf where no token has A < 0).
    * ``actor/entropy_adv_bonus``: mean of what the entropy added to the advantages.
    * ``actor/ref_kl``: mean KL estimate against the reference, nats per token, before ``kl_coef``.
    * ``actor/rollout_is_outside_frac``: fraction of tokens whose rollout weight was truncated or masked.
    * ``actor/ratio_min/mean/max``: of ``exp(log_prob - old_log_prob)``, the difference clamped to +-20 (for DAC to at most 20);
      min and max skip NaN.
    * ``actor/log_ratio_clamped_frac``: fraction of tokens whose difference that changes (or is NaN).
    * ``actor/nonfinite_count``: number of unmasked tokens with NaN or inf in any input.

    Attributes:
        tensor: float64 ``[NUM_STATS]``, on the device of the inputs.
        names: what each number is; see :func:`stat_names`.

    ``stats["actor/ratio_mean"]`` is one of them, on the device; ``"actor/ratio_mean" in stats`` says whether the call has it.
    """

    tensor: torch.Tensor
    names: tuple[str | None, ...]

    def __getitem__(self, key: Any) -> Any:
        """By a name that statistic, a scalar that is still on the device; by a number or slice what a tuple has there.

        Raises:
            KeyError: the call has no statistic of that name.
        """
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key not in self.names:
            there = [name for name in self.names if name is not None]
            remedy = did_you_mean(key, there, "The others come with a ratio_mode or an option.")
            raise KeyError(message("stats", f"one of {', '.join(there)}", repr(key), remedy))
        return self.tensor[self.names.index(key)]

    def __contains__(self, name: object) -> bool:
        """Whether the call has a statistic of that name."""
        return isinstance(name, str) and name in self.names

    def to_dict(self) -> dict[str, float]:
        """The statistics that the method has as python floats, by one copy from the device (which waits for it).

        Raises:
            IndexError: targets given to ``linear_loss`` were out of range.
        """
        named = {name: value for name, value in zip(self.names, self.tensor.tolist(), strict=True) if name is not None}
        if invalid := named.pop(INVALID_TARGETS, 0):
            expected = "words of the vocabulary at all unmasked tokens"
            got = f"others at {invalid:.0f} of them; their log_prob is NaN"
            raise IndexError(message("target", expected, got, "Check the tokenizer against the model."))
        return named
