"""Reading the golden vectors. What is in a file: tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[1] / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
METRICS = ("pg_clipfrac", "ppo_kl", "pg_clipfrac_lower")
_CLIP_NAMES = {"clip_low": "clip_ratio_low", "clip_high": "clip_ratio_high", "clip_c": "clip_ratio_c"}


class Golden:
    """One case: arguments of the op, and what the official code or the closed form gives."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        meta = json.loads(str(self.arrays["meta"]))
        self.mask_dtype = meta["mask_dtype"]
        self.keywords: dict[str, Any] = {_CLIP_NAMES.get(key, key): value for key, value in meta["hyper"].items()}
        self.keywords["loss_agg_mode"] = meta["agg_mode"]
        self.is_hazard = "hazard" in meta
        self.rejected = self.keywords["sigma_high"] < self.keywords["sigma_base"]
        # The fork's "-norm" mode is M / T; verl 0.9.1 also divides by the number of sequences that have a token.
        rows = int(self.arrays["response_mask"].any(axis=1).sum())
        self.factor = 1 / rows if meta["agg_mode"] == "seq-mean-token-sum-norm" else 1.0

    def batch(self, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
        batch = {name: self._tensor(name, device).to(dtype) for name in ("log_prob", "old_log_prob", "advantages")}
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
        return float(self.arrays[f"{self._source}loss_f64"]) * self.factor

    @property
    def grad(self) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{self._source}grad_f64"]) * self.factor

    @property
    def loss_scale(self) -> float:
        """Sum of abs(weight * token loss); a hazard file has none: of the gradient, the same but for clamped tokens."""
        if self.is_hazard:
            return max(abs(self.loss), float(self.grad.abs().sum()))
        return float(self.arrays["loss_scale_f64"]) * self.factor

    def metric(self, name: str) -> float:
        return float(self.arrays[f"metric_{name}_f64"])
