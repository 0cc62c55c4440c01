"""Reading the golden vectors. What is in a file: tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maspo_ext

FOLDER = Path(__file__).resolve().parents[1] / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
METRICS = ("pg_clipfrac", "ppo_kl", "pg_clipfrac_lower")
TENSORS = ("log_prob", "old_log_prob", "advantages", "rollout_is_weights", "entropy")
COUNTS = ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")


class Golden:
    """One case: arguments of the loss, and what the official code or the closed form gives."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.meta = json.loads(str(self.arrays["meta"]))
        self.mask_dtype = self.meta["mask_dtype"]
        # Whether the official denominator was a float64: of a float mask, or DCPO's count, given as a number.
        self.float_count = self.mask_dtype == "float" or "batch_response_len" in self.meta
        self.is_hazard = "hazard" in self.meta
        self.ratio_mode = self.meta["mode"].removesuffix("_fork")
        self.hyper: dict[str, Any] = self.meta["hyper"]
        self.rejected = self.ratio_mode == "maspo" and self.hyper["sigma_high"] < self.hyper["sigma_base"]
        self.aggregation = self._aggregation()

    def _aggregation(self) -> dict[str, Any]:
        """Our aggregation keywords for what the case's repository did (docs/design.md says where they differ)."""
        mode, impl = self.meta["agg_mode"], self.meta["impl"]
        keywords = {name: self.meta[name] for name in COUNTS if self.meta.get(name) is not None}
        # sapo ignores what it is given; only-token-mean is DCPO's name for the mean over all tokens.
        keywords["loss_agg_mode"] = {"sapo": "seq-mean-token-mean"}.get(
            self.ratio_mode, {"only-token-mean": "token-mean"}.get(mode, mode)
        )
        if impl in ("dcpo", "bapo") and not self.is_hazard:
            # All rows count as sequences, empty ones too.
            keywords["global_batch_size"] = self.meta.get("batch_size", self.meta["B"])
            if "batch_response_len" in self.meta:
                keywords["batch_num_tokens"] = int(self.meta["batch_response_len"])
        if impl != "verl091" and mode == "seq-mean-token-sum-norm":
            keywords["global_batch_size"] = 1  # these divide by T only
        if keywords["loss_agg_mode"] == "token-mean" and "batch_num_tokens" not in keywords:
            keywords.pop("global_batch_size", None)  # of no use to it, and refused
        return keywords

    def config(self) -> maspo_ext.methods.MethodConfig:
        return maspo_ext.config.config_for(self.ratio_mode, None, self.hyper, "policy_loss")

    def batch(self, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
        batch = {name: self._tensor(name, device).to(dtype) for name in TENSORS if name in self.arrays}
        mask_dtype = dtype if self.mask_dtype == "float" else getattr(torch, self.mask_dtype)
        batch["response_mask"] = self._tensor("response_mask", device).to(mask_dtype)
        return batch

    def _tensor(self, name: str, device: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name]).to(device)

    @property
    def _source(self) -> str:
        return "robust_" if self.is_hazard else ""

    @property
    def loss(self) -> float:
        return float(self.arrays[f"{self._source}loss_f64"])

    @property
    def grad(self) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{self._source}grad_f64"])

    @property
    def loss_scale(self) -> float:
        """Sum of abs(weight * token loss); a hazard file has none: of the gradient, the same but for clamped tokens."""
        if self.is_hazard:
            return max(abs(self.loss), float(self.grad.abs().sum()))
        return float(self.arrays["loss_scale_f64"])

    def metric(self, name: str) -> float:
        return float(self.arrays[f"metric_{name}_f64"])
