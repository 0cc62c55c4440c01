"""What is measured: the batches, and the list of cases."""

from __future__ import annotations

from typing import NamedTuple

import torch
from peers import EAGER

SHAPES = {
    "cpu": [(1, 1), (8, 512), (64, 1024), (64, 4096), (256, 8192)],
    "cuda": [(8, 512), (64, 4096), (16384, 4096)],
}


# Where torch.compile takes part on a GPU: to compile a case takes five to ten seconds, and the whole has two minutes.
COMPILED_ON_GPU = [(8, 512), (64, 4096), (16384, 4096)]


class Case(NamedTuple):
    rows: int
    cols: int
    dtype: torch.dtype = torch.float32
    masked: float = 0.2
    mode: str = "maspo"
    with_backward: bool = True
    scattered: bool = False  # masked tokens anywhere; else a sequence's last ones, its padding

    def columns(self) -> dict:
        """The case in a row of the CSV."""
        return {
            "rows": self.rows, "cols": self.cols, "dtype": str(self.dtype).removeprefix("torch."), "masked": self.masked,
            "mask": "scattered" if self.scattered else "padding", "ratio_mode": self.mode,
            "pass": "forward+backward" if self.with_backward else "forward",
        }  # fmt: skip

    def is_compiled(self, device: str) -> bool:
        """Whether torch.compile is a peer: for MASPO; on a GPU for the first kind of cases alone, at some shapes."""
        few = self == Case(self.rows, self.cols) and (self.rows, self.cols) in COMPILED_ON_GPU
        return self.mode == "maspo" and (device == "cpu" or few)

    def floor_bytes(self, device: str) -> int:
        """What has to move: the mask read, and the three inputs, but not of padding; the gradient (float32) written, and where
        that is not the result yet, since it lacks its scale (on a GPU) or its dtype, read again and the result written."""
        size = torch.finfo(self.dtype).bits // 8
        backward = 0 if device == "cpu" and self.dtype == torch.float32 else 4 + size
        inputs = 3 * size * (1 if self.scattered else 1 - self.masked)
        return round(self.rows * self.cols * (inputs + 1 + (4 + backward if self.with_backward else 0)))


def cases(device: str) -> list[Case]:
    """Every mode at every size, with little and much padding, in float32 and bfloat16; a batch of one token once, and on a GPU, where
    a small batch takes what its launches take, all but the largest."""
    kinds = [{}, {"with_backward": False}, {"masked": 0.9}, {"dtype": torch.bfloat16}]
    if device == "cpu":  # whose loop takes tokens by runs
        kinds.append({"scattered": True})
    least_rows = 2 if device == "cpu" else SHAPES[device][-1][0]
    return [
        Case(rows, cols, mode=mode, **kind)
        for rows, cols in SHAPES[device]
        for mode in EAGER
        for kind in (kinds if rows >= least_rows else kinds[:1])
    ]


def make_batch(case: Case, device: str) -> dict[str, torch.Tensor]:
    rows, cols = case.rows, case.cols
    old = -3 * torch.rand(rows, cols, device=device)
    values = {
        "log_prob": old + 0.3 * torch.randn_like(old),
        "old_log_prob": old,
        "advantages": torch.randn(rows, 1, device=device).expand(rows, cols).contiguous(),
        "entropy": torch.rand_like(old),
    }
    batch = {name: value.to(case.dtype) for name, value in values.items()}
    batch["log_prob"].requires_grad_()
    batch["response_mask"] = make_mask(case, device)
    return batch


def make_mask(case: Case, device: str) -> torch.Tensor:
    """At random, with the case's share of masked tokens on average; every sequence has a token."""
    if case.scattered:
        mask = torch.rand(case.rows, case.cols, device=device) >= case.masked
    else:  # lengths as evenly spread as there is room
        spread = min(case.masked, 1 - case.masked)
        lengths = case.cols * (1 - case.masked + spread * (2 * torch.rand(case.rows, 1, device=device) - 1))
        mask = torch.arange(case.cols, device=device) < lengths
    mask[:, 0] = True
    return mask
