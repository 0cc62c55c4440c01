"""What the tests of wrong arguments share: MASPO's wrong numbers, a right packed call, the message to expect."""

import math
import re

import pytest
import torch

NAN, INF = math.nan, math.inf


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


# arguments that differ from a right call | argument | expected | got | remedy; the batch is [4, 6], float32
NUMBERS = [
    ({"alpha": -0.1}, "alpha", ">= 0", "-0.1", "exponent"),
    ({"sigma_base": 0.0}, "sigma_base", "> 0", "0.0", "1.0"),
    ({"sigma_base": -1.0}, "sigma_base", "> 0", "-1.0", "1.0"),
    ({"sigma_high": 0.5}, "sigma_high", ">= sigma_base = 1.0", "0.5", "10.0"),
    ({"sigma_base": 3.0, "sigma_high": 2.0}, "sigma_high", ">= sigma_base = 3.0", "2.0", "10.0"),
    ({"adv_low": 0.0}, "adv_low", "> 0", "0.0", "0.1"),
    ({"adv_low": -2.0}, "adv_low", "> 0", "-2.0", "0.1"),
    ({"adv_low": 11.0}, "adv_high", ">= adv_low = 11.0", "10.0", "10.0"),
    ({"adv_low": 2.0, "adv_high": 1.0}, "adv_high", ">= adv_low = 2.0", "1.0", "10.0"),
    ({"beta_pos": -0.1}, "beta_pos", ">= 0", "-0.1", "0.03"),
    ({"beta_neg": -0.1}, "beta_neg", ">= 0", "-0.1", "0.03"),
    ({"clip_ratio_low": -0.2}, "clip_ratio_low", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_high": -0.2}, "clip_ratio_high", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "3.0"),
]
HYPER = ("sigma_base", "alpha", "sigma_high", "adv_low", "adv_high", "beta_pos", "beta_neg")
HYPER += ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c")
# With sigma_base or adv_low = inf no upper bound is left, but the message is still about them, not about the bound.
MAY_BE_INF = ("sigma_high", "adv_high", "clip_ratio_c")  # no bound
NUMBERS += [
    ({name: value}, name, "", repr(value), "")
    for name in HYPER
    for value in (NAN, INF, -INF)
    if value != INF or name not in MAY_BE_INF
]

PACKED = {"cu_seqlens": torch.tensor([0, 4, 9]), "max_seqlen": 5}


def packed(**wrong):
    return {
        **{name: ones(9) for name in ("log_prob", "old_log_prob", "advantages", "response_mask")},
        **PACKED,
        **wrong,
    }


def explains(name, expected, got, remedy):
    got = re.escape(got) if not got.startswith("\\") else got
    return rf"maspo_ext: {name}: expected .*{expected}.*, got {got}\. .*{remedy}.*[.?]$"


def named(rows):
    return [pytest.param(*row, id=f"{row[1]}-{i}") for i, row in enumerate(rows)]
