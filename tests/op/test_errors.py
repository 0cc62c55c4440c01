"""Every wrong argument: the message names it, what was expected, what came, and what to do."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy
import pytest
import torch

import maspo_ext
from maspo_ext.methods.names import CLIP_OF, NOT_HERE

from .cases import DEFAULT_METHODS, GLOBAL_COUNTS, KERNEL, every_mode, op, random_batch

NAN, INF = math.nan, math.inf


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


# arguments that differ from a right call | error | argument | expected | got | remedy; the batch is [4, 6], float32
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

CLIP_NUMBERS = [
    ({"clip_ratio_low": -0.2}, "clip_ratio_low", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_high": -0.2}, "clip_ratio_high", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "dual clip"),
]
TOO_MANY = "ratio_lower_step, ratio_upper_step", "at most 128 bounds to try"
# The same of the other modes' fields: at least one wrong value of each.
BY_MODE = {
    "ppo": CLIP_NUMBERS,
    "grpo": CLIP_NUMBERS,
    "clip_higher": CLIP_NUMBERS,
    "dac": [
        ({"eps_low": -0.1}, "eps_low", ">= 0", "-0.1", "0.2"),
        ({"eps_high": -0.1}, "eps_high", ">= 0", "-0.1", "0.28"),
        ({"clip_ratio_c": 0.9}, "clip_ratio_c", "> 1", "0.9", "dual clip"),
    ],
    "entropy_adv": CLIP_NUMBERS
    + [
        ({"alpha": -0.4}, "alpha", ">= 0", "-0.4", "published: 0.4 with GRPO"),
        ({"kappa": 0.5}, "kappa", ">= 1", "0.5", "keeps its sign"),
    ],
    "bapo": CLIP_NUMBERS
    + [
        ({"adv_ratio_target": -1.0}, "adv_ratio_target", ">= 0", "-1.0", "1.0"),
        ({"ratio_lower_start": 0.0}, "ratio_lower_start", "> 0", "0.0", "bound of the ratio"),
        ({"ratio_upper_start": -1.2}, "ratio_upper_start", "> 0", "-1.2", "bound of the ratio"),
        ({"ratio_lower_max": 0.5}, "ratio_lower_max", ">= ratio_lower_start = 0.6", "0.5", "None searches nothing"),
        ({"ratio_upper_max": 1.1}, "ratio_upper_max", ">= ratio_upper_start = 1.2", "1.1", "None searches nothing"),
        ({"ratio_lower_step": -0.1}, "ratio_lower_step", ">= 0", "-0.1", "0 searches nothing"),
        ({"ratio_upper_step": -0.1}, "ratio_upper_step", ">= 0", "-0.1", "0 searches nothing"),
        ({"ratio_lower_max": 1.1}, "ratio_lower_max", "<= 1.0", "1.1", "clip the ratio 1"),
        ({"ratio_upper_start": 0.9}, "ratio_upper_start", ">= 1.0", "0.9", "clip the ratio 1"),
        ({"eps": -1e-8}, "eps", ">= 0", "-1e-08", "1e-8"),
        ({"ratio_upper_step": 0.001}, *TOO_MANY, "about 5 lower ones and about 801 upper ones", "larger steps"),
        ({"ratio_lower_step": 1e-9}, *TOO_MANY, "about 2e+08 lower ones and about 17 upper ones", "larger steps"),
        ({"ratio_upper_step": 5e-324}, *TOO_MANY, "about 5 lower ones and about 1e+300 upper ones", "larger steps"),
    ],
    "sapo": [
        ({"tau_pos": 0.0}, "tau_pos", "> 0", "0.0", "1.0"),
        ({"tau_neg": -1.05}, "tau_neg", "> 0", "-1.05", "1.05"),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "dual clip"),
    ],
}
NUMBER_FIELDS = {
    mode: [name for name, value in dataclasses.asdict(method.config).items() if not isinstance(value, bool)]
    for mode, method in DEFAULT_METHODS.items()
}
OF_MODES = [(mode, *row) for mode, rows in BY_MODE.items() for row in rows]
# As above, what follows from an infinite field may be named instead of it.
OF_MODES += [
    (mode, {name: value}, name, "", repr(value), "")
    for mode in BY_MODE
    for name in NUMBER_FIELDS[mode]
    for value in (NAN, INF, -INF)
    if value != INF or name != "clip_ratio_c"
]

AGGREGATION = [
    (
        {"loss_agg_mode": "mean"},
        "loss_agg_mode",
        "one of token-mean, token-sum, seq-mean-token-sum",
        "'mean'",
        "Choose",
    ),
    ({"loss_agg_mode": ""}, "loss_agg_mode", "one of token-mean", "''", "Choose"),
    ({"loss_agg_mode": "Token-Mean"}, "loss_agg_mode", "one of token-mean", "'Token-Mean'", "Did you mean token-mean"),
    ({"dp_size": 0}, "dp_size", "a whole number >= 1", "0", "data-parallel ranks"),
    ({"dp_size": -2}, "dp_size", "a whole number >= 1", "-2", "data-parallel ranks"),
    ({"batch_num_tokens": -1}, "batch_num_tokens", "a whole number >= 0", "-1", "None counts locally"),
    ({"global_batch_size": -1}, "global_batch_size", "a whole number >= 0", "-1", "None counts locally"),
    (
        {"global_batch_size": 9},
        "batch_num_tokens",
        "count of the global batch, since global_batch_size is given and loss_agg_mode='token-mean' does not",
        "None",
        "or neither",
    ),
    *(
        (
            {"batch_num_tokens": 9, "loss_agg_mode": mode},
            "global_batch_size",
            f"count of the global batch, since batch_num_tokens is given and loss_agg_mode='{mode}' does not",
            "None",
            "or neither",
        )
        for mode in ("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    ),
    ({"loss_scale_factor": 0.0}, "loss_scale_factor", "> 0", "0.0", "width T"),
    ({"loss_scale_factor": NAN}, "loss_scale_factor", "> 0", "nan", "width T"),
    ({"dp_size": 2}, "batch_num_tokens", "count over all 2 data-parallel ranks.*'token-mean'", "None", "all_reduce"),
    ({"dp_size": 2, "global_batch_size": 8}, "batch_num_tokens", "count over all 2", "None", "all_reduce"),
    *(
        (
            {"dp_size": 3, "batch_num_tokens": 8, "loss_agg_mode": mode},
            "global_batch_size",
            f"all 3.*'{mode}'",
            "None",
            "all_reduce",
        )
        for mode in ("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    ),
]

SHAPES = [
    ({"log_prob": ones(24)}, "log_prob", r"shape \[B, T\]", r"\[24\]", "batch dimension"),
    ({"log_prob": ones(4, 6, 1)}, "log_prob", r"shape \[B, T\]", r"\[4, 6, 1\]", "drop a last dimension"),
    ({"log_prob": ones(4, 7)}, "old_log_prob", r"\[B, T\] = \[4, 7\]", r"\[4, 6\]", "slice or expand"),
    ({"old_log_prob": ones(4, 1)}, "old_log_prob", r"\[B, T\] = \[4, 6\]", r"\[4, 1\]", "slice or expand"),
    ({"old_log_prob": ones(6)}, "old_log_prob", r"\[B, T\] = \[4, 6\]", r"\[6\]", "slice or expand"),
    (
        {"advantages": ones(6)},
        "advantages",
        r"\[B, T\] or \[B, 1\] or \[B\] with \[B, T\] = \[4, 6\]",
        r"\[6\]",
        "slice or expand",
    ),
    ({"advantages": ones(1, 6)}, "advantages", r"\[B, 1\] or \[B\]", r"\[1, 6\]", "slice or expand"),
    ({"advantages": ones(())}, "advantages", r"\[B, 1\] or \[B\]", r"\[\]", "slice or expand"),
    ({"advantages": ones(4, 6, 1)}, "advantages", r"\[B, 1\] or \[B\]", r"\[4, 6, 1\]", "slice or expand"),
    ({"response_mask": ones(4, 5)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4, 5\]", "slice or expand"),
    ({"response_mask": ones(4)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4\]", "slice or expand"),
    ({"response_mask": ones(4, 1)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4, 1\]", "slice or expand"),
    ({"rollout_is_weights": ones(5)}, "rollout_is_weights", r"\[B, 1\] or \[B\]", r"\[5\]", "slice or expand"),
    ({"rollout_is_weights": ones(6, 4)}, "rollout_is_weights", r"\[B, T\] = \[4, 6\]", r"\[6, 4\]", "slice or expand"),
]

INTEGER, COMPLEX = torch.int64, torch.complex64
DTYPES = [
    (
        {name: ones(4, 6, dtype=dtype)},
        name,
        "dtype in float32, float64, bfloat16, float16",
        f"torch.{str(dtype)[6:]}",
        rf"{name}\.to\(",
    )
    for name in ("log_prob", "old_log_prob", "advantages", "rollout_is_weights", "entropy", "ref_log_prob")
    for dtype in (INTEGER, torch.bool, COMPLEX)
]
DTYPES += [
    (
        {"response_mask": ones(4, 6, dtype=COMPLEX)},
        "response_mask",
        "dtype in float32.*bool.*int64",
        "torch.complex64",
        r"\.to\(",
    )
]

PACKED = {"cu_seqlens": torch.tensor([0, 4, 9]), "max_seqlen": 5}


def packed(**wrong):
    return {
        **{name: ones(9) for name in ("log_prob", "old_log_prob", "advantages", "response_mask")},
        **PACKED,
        **wrong,
    }


OPTIONS = [
    ({"entropy": ones(4, 5)}, "entropy", r"\[B, T\] = \[4, 6\]", r"\[4, 5\]", "slice or expand"),
    ({"entropy": ones(4)}, "entropy", r"\[B, T\] = \[4, 6\]", r"\[4\]", "slice or expand"),
    ({"entropy_alpha": 0.4}, "entropy", r"a tensor, since entropy_alpha = 0\.4", "None", "entropy of each token"),
    (
        {"ratio_mode": "entropy_adv"},
        "entropy",
        "a tensor for ratio_mode='entropy_adv'",
        "None",
        "entropy of each token",
    ),
    (
        {"ratio_mode": "entropy_adv", "entropy": ones(4, 6), "entropy_alpha": 0.9},
        "entropy_alpha, entropy_kappa",
        "the defaults for ratio_mode='entropy_adv'",
        "0.9, 2.0",
        "hyper-parameters of the mode",
    ),
    ({"entropy": ones(4, 6), "entropy_alpha": -0.1}, "entropy_alpha", ">= 0", "-0.1", "published"),
    ({"entropy": ones(4, 6), "entropy_alpha": NAN}, "entropy_alpha", ">= 0 and finite", "nan", "published"),
    ({"entropy": ones(4, 6), "entropy_kappa": 0.9}, "entropy_kappa", ">= 1", "0.9", "keeps its sign"),
    ({"entropy": ones(4, 6), "entropy_kappa": INF}, "entropy_kappa", ">= 1 and finite", "inf", "keeps its sign"),
    ({"ref_log_prob": ones(4, 1)}, "ref_log_prob", r"\[B, T\] = \[4, 6\]", r"\[4, 1\]", "slice or expand"),
    ({"kl_coef": 0.1}, "ref_log_prob", r"a tensor, since kl_coef = 0\.1", "None", "kl_coef=0"),
    ({"ref_log_prob": ones(4, 6), "kl_coef": -0.1}, "kl_coef", ">= 0", "-0.1", "0.001"),
    ({"ref_log_prob": ones(4, 6), "kl_coef": NAN}, "kl_coef", ">= 0 and finite", "nan", "0.001"),
    *(
        (
            {"ref_log_prob": ones(4, 6), "kl_type": kl_type},
            "kl_type",
            "one of k1, kl, .*trailing \\+",
            repr(kl_type),
            "Choose",
        )
        for kl_type in ("k4", "", "+", "k3++", "K3", "lowvar_kl", "low_var_kl +")
    ),
    ({"kl_type": "k4"}, "kl_type", "one of k1", "'k4'", "Choose"),  # even where it is of no use
    *(
        (
            {"rollout_is_weights": None, **bounds},
            "rollout_is_weights",
            f"a tensor, since {name} = ",
            "None",
            "Pass the weights",
        )
        for name, bounds in (
            ("rollout_is_upper", {"rollout_is_upper": 2.0}),
            ("rollout_is_lower", {"rollout_is_lower": 0.5, "rollout_is_upper": 2.0}),
        )
    ),
    ({"rollout_is_lower": 0.5}, "rollout_is_upper", "a number, since rollout_is_lower is given", "None", "IcePop"),
    (
        {"rollout_is_lower": 2.0, "rollout_is_upper": 0.5},
        "rollout_is_upper",
        r">= rollout_is_lower = 2\.0",
        "0.5",
        "IcePop",
    ),
    ({"rollout_is_upper": -1.0}, "rollout_is_upper", ">= 0", "-1.0", "bounds the importance weights"),
    ({"rollout_is_upper": NAN}, "rollout_is_upper", ">= 0 and finite", "nan", "bounds the importance weights"),
    (
        {"bapo_sums": torch.ones(18, dtype=torch.float64)},
        "bapo_sums",
        "None for a ratio_mode other than 'bapo'",
        "a tensor",
        "Drop",
    ),
    (
        {"ratio_mode": "bapo", **GLOBAL_COUNTS},
        "bapo_sums",
        "the sums over all 2 data-parallel ranks, since dp_size > 1",
        "None",
        "all_reduce",
    ),
    ({"hyper": [1.0]}, "hyper", "nothing for ratio_mode='maspo'", r"[1.0]", "named arguments"),
    (
        {"ratio_mode": "MASPO"},
        "ratio_mode",
        "one of maspo, ppo, grpo, clip_higher, dac, entropy_adv, bapo, sapo",
        "'MASPO'",
        "Did you mean maspo",
    ),
    ({"ratio_mode": ""}, "ratio_mode", "one of maspo, ppo", "''", "Choose"),
    ({"max_seqlen": 6}, "max_seqlen", "None without cu_seqlens", "6", "pass cu_seqlens too"),
]
for mode in DEFAULT_METHODS:
    count = len(DEFAULT_METHODS[mode].config.hyper())
    if mode != "maspo":
        OPTIONS += [
            (
                {"ratio_mode": mode, "hyper": [0.5] * n},
                "hyper",
                rf"{count} values \(.*, .*\)",
                str(n),
                r"Config\(\.\.\.\)\.hyper\(\)",
            )
            for n in (1, count - 1, count + 1)
        ]
        OPTIONS += [
            (
                {"ratio_mode": mode, name: value},
                name,
                f"the default for ratio_mode='{mode}'",
                repr(value),
                "are MASPO's",
            )
            for name, value in (("sigma_base", 2.0), ("clip_ratio_low", 0.3), ("gate_gradient", True))
        ]

PACKED_SHAPES = [
    (packed(log_prob=ones(3, 3)), "log_prob", r"shape \[total_tokens\], since cu_seqlens", r"\[3, 3\]", "Flatten"),
    (packed(old_log_prob=ones(8)), "old_log_prob", r"\[total_tokens\] = \[9\] .* B = 2", r"\[8\]", "slice or expand"),
    (packed(advantages=ones(2)), "advantages", r"\[total_tokens\] or \[B, 1\]", r"\[2\]", "slice or expand"),
    (packed(advantages=ones(9, 1)), "advantages", r"\[total_tokens\] or \[B, 1\]", r"\[9, 1\]", "slice or expand"),
    (packed(response_mask=ones(2, 1)), "response_mask", r"\[total_tokens\]", r"\[2, 1\]", "slice or expand"),
    (packed(entropy=ones(2, 5)), "entropy", r"\[total_tokens\]", r"\[2, 5\]", "slice or expand"),
    (packed(ref_log_prob=ones(10)), "ref_log_prob", r"\[total_tokens\]", r"\[10\]", "slice or expand"),
    (packed(max_seqlen=None), "max_seqlen", "length of the longest sequence, since cu_seqlens", "None", "waiting"),
    (packed(max_seqlen=-1), "max_seqlen", ">= 0", "-1", "longest sequence"),
    (packed(cu_seqlens=torch.tensor([[0, 4, 9]])), "cu_seqlens", r"shape \[B \+ 1\]", r"\[1, 3\]", "running sum"),
    (packed(cu_seqlens=torch.tensor(9)), "cu_seqlens", r"shape \[B \+ 1\]", r"\[\]", "running sum"),
    (packed(cu_seqlens=torch.zeros(0, dtype=torch.int64)), "cu_seqlens", r"shape \[B \+ 1\]", r"\[0\]", "running sum"),
    (packed(cu_seqlens=PACKED["cu_seqlens"].to("meta")), "cu_seqlens", "device cpu", "meta", "Move it"),
]

DTYPES += [
    (
        packed(cu_seqlens=PACKED["cu_seqlens"].to(dtype)),
        "cu_seqlens",
        "dtype in int64, int32",
        f"torch.{str(dtype)[6:]}",
        r"cu_seqlens\.to\(torch\.int64\)",
    )
    for dtype in (torch.int16, torch.float32, torch.bool)
]

DEVICES = [
    (
        {name: ones(4, 6, device="meta")},
        name,
        r"device cpu \(that of log_prob\)",
        "meta",
        rf"{name}\.to\(log_prob\.device\)",
    )
    for name in ("old_log_prob", "advantages", "response_mask", "rollout_is_weights", "entropy", "ref_log_prob")
]
DEVICES += [
    ({"log_prob": ones(4, 6, device="meta")}, "old_log_prob", "device meta", "cpu", r"\.to\(log_prob\.device\)")
]


def explains(name, expected, got, remedy):
    got = re.escape(got) if not got.startswith("\\") else got
    return rf"maspo_ext: {name}: expected .*{expected}.*, got {got}\. .*{remedy}.*[.?]$"


def named(rows):
    return [pytest.param(*row, id=f"{row[1]}-{i}") for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "wrong, name, expected, got, remedy", named(NUMBERS + AGGREGATION + SHAPES + OPTIONS + DEVICES)
)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_wrong_value(requires_grad, wrong, name, expected, got, remedy):
    batch = random_batch(4, 6, dtype=torch.float32)
    batch["log_prob"].requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
        op(**{**batch, **wrong})


@pytest.mark.parametrize("call, name, expected, got, remedy", named(PACKED_SHAPES))
def test_wrong_value_with_packed_tensors(call, name, expected, got, remedy):
    for function in (op, maspo_ext.policy_loss):
        with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
            function(**call)


# On a CPU the values are looked at too: 9 tokens, max_seqlen 5.
@pytest.mark.parametrize(
    "cu_seqlens, got, sequence",
    [
        ([1, 4, 9], "[1, 4)", 0),
        ([-1, 4, 9], "[-1, 4)", 0),
        ([0, 4, 8], "[4, 8)", 1),
        ([0, 4, 10], "[4, 10)", 1),
        ([0, 5, 4, 9], "[5, 4)", 1),
        ([0, 3, 9], "[3, 9)", 1),
        ([0, 6, 9], "[0, 6)", 0),
        ([0, 4], "[0, 4)", 0),
        ([0, 2**40, 9], f"[0, {2**40})", 0),
        ([-(2**63), 2**63 - 1, 9], f"[{-(2**63)}, {2**63 - 1})", 0),
    ],
    ids=str,
)
@every_mode
def test_wrong_cu_seqlens(method, cu_seqlens, got, sequence):
    call = packed(cu_seqlens=torch.tensor(cu_seqlens), entropy=ones(9))
    expected = r"0 first, 9 \(the number of tokens\) last, and no step down or longer than max_seqlen = 5"
    message = rf"maspo_ext: cu_seqlens: expected {expected}, got {re.escape(got)} for sequence {sequence}\. Pass the running sum"
    for function, keywords in ((op, method.keywords), (maspo_ext.policy_loss, {"ratio_mode": method.mode})):
        with pytest.raises(RuntimeError, match=message):
            function(**call, **keywords)


def test_no_sequence_but_tokens_is_refused():
    """[0] is right for no token only."""
    with pytest.raises((RuntimeError, ValueError), match="cu_seqlens"):
        op(**packed(cu_seqlens=torch.tensor([0]), max_seqlen=9))


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(DTYPES))
def test_wrong_dtype(wrong, name, expected, got, remedy):
    with pytest.raises(TypeError, match=explains(name, expected, got, remedy)):
        op(**{**random_batch(4, 6, dtype=torch.float32), **wrong})


@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "advantages", "response_mask"])
def test_a_tensor_that_must_be_there(name):
    batch = {**random_batch(4, 6, dtype=torch.float32), name: None}
    for function in (op, maspo_ext.policy_loss):
        if name == "old_log_prob" and function is maspo_ext.policy_loss:
            continue  # which takes log_prob for it
        with pytest.raises(TypeError, match=explains(name, r"a torch\.Tensor", "NoneType", "required")):
            function(**batch)


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(NUMBERS))
def test_config_rejects_what_the_op_rejects(wrong, name, expected, got, remedy):
    with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
        maspo_ext.MaspoConfig(**wrong)


@pytest.mark.parametrize(
    "mode, wrong, name, expected, got, remedy",
    [pytest.param(*row, id=f"{row[0]}-{row[2]}-{i}") for i, row in enumerate(OF_MODES)],
)
def test_wrong_value_of_a_mode(mode, wrong, name, expected, got, remedy):
    """By the config, by the op, by both fronts, with one message."""
    batch = random_batch(4, 6, entropy=True)
    method = DEFAULT_METHODS[mode]
    with pytest.raises(ValueError) as of_config:
        method.with_(**wrong)
    message = str(of_config.value)
    assert re.match(explains(name, expected, got, remedy), message)
    values = dict(zip(dataclasses.asdict(method.config), method.config.hyper(), strict=True)) | wrong
    for call in (
        lambda: op(**batch, ratio_mode=mode, hyper=list(values.values())),
        lambda: maspo_ext.policy_loss(**batch, ratio_mode=mode, **wrong),
        lambda: maspo_ext.PolicyLoss(mode, **wrong),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


MAY_BE_NONE = ("ratio_lower_start", "ratio_lower_max", "ratio_upper_start", "ratio_upper_max")


@pytest.mark.parametrize("value", ["0.3", None, True, [0.3]], ids=repr)
@pytest.mark.parametrize("mode, name", [(mode, name) for mode, names in NUMBER_FIELDS.items() for name in names])
def test_config_rejects_what_is_no_number(mode, name, value):
    if value is None and name in MAY_BE_NONE:
        assert getattr(DEFAULT_METHODS[mode].with_(**{name: None}).config, name) is None
        return
    got = re.escape(f"{value!r} ({type(value).__name__})")
    with pytest.raises(TypeError, match=rf"maspo_ext: {name}: expected a number, .*, got {got}\. "):
        DEFAULT_METHODS[mode].with_(**{name: value})


@pytest.mark.parametrize("value", [1, None, "yes"], ids=repr)
@pytest.mark.parametrize(
    "mode, name, remedy", [("maspo", "gate_gradient", "published"), ("bapo", "upper_first", "order of")]
)
def test_config_rejects_a_flag_that_is_no_bool(mode, name, remedy, value):
    with pytest.raises(
        TypeError, match=rf"maspo_ext: {name}: expected True or False, got {value!r}\. False is the {remedy}"
    ):
        DEFAULT_METHODS[mode].with_(**{name: value})


def test_every_number_has_a_wrong_value_above():
    rows = {"maspo": NUMBERS, **BY_MODE}
    for mode, fields in NUMBER_FIELDS.items():
        given = {name for wrong, *_ in rows.get(mode, ()) for name in wrong}
        assert given >= set(fields), f"{mode}: no wrong value of {set(fields) - given}"


FRONTS = {
    "policy_loss": lambda **keywords: maspo_ext.policy_loss(**random_batch(4, 6), **keywords),
    "PolicyLoss": maspo_ext.PolicyLoss,
}
MODES_OF = dict.fromkeys(("ppo", "grpo"), "'ppo' or 'grpo'")  # of a config that two modes share
ALL_MODES = ", ".join(maspo_ext.RATIO_MODES)
FRONT_ERRORS = [
    ({"ratio_mode": "ppo2"}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got 'ppo2'\. Did you mean ppo\?"),
    ({"ratio_mode": None}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got None\. Choose"),
    ({"ratio_mode": ["maspo"]}, ValueError, rf"ratio_mode: expected one of {ALL_MODES}, got \['maspo'\]\. Did you mean maspo\?"),
    (
        {"alhpa": 0.3},
        TypeError,
        r"FRONT: expected keywords of MaspoConfig \(sigma_base, alpha, .*\), or those of FRONT itself, got alhpa\. "
        r"Did you mean alpha\?",
    ),
    (
        {"config": maspo_ext.MaspoConfig(), "alpha": 0.3},
        TypeError,
        r"FRONT: expected either config or hyper-parameters as keywords, got both \(alpha\)\. Use dataclasses",
    ),
    (
        {"config": {"alpha": 0.3}},
        TypeError,
        r"config: expected a MaspoConfig for ratio_mode='maspo', got dict\. Make one: config=MaspoConfig\(\.\.\.\)",
    ),
    ({"alpha": -1.0}, ValueError, r"alpha: expected >= 0, got -1\.0\. "),
    ({"sigma_high": NAN}, ValueError, r"sigma_high: expected >= sigma_base = 1\.0 \(inf for no bound\), got nan\. "),
    ({"loss_agg_mode": "mean"}, ValueError, r"loss_agg_mode: expected one of token-mean, .*, got 'mean'\. Choose"),
    *(
        (
            {"ratio_mode": mode, "sigma_bse": 1.0},
            TypeError,
            rf"FRONT: expected keywords of {type(method.config).__name__} \({', '.join(dataclasses.asdict(method.config))}\), "
            r"or those of FRONT itself, got sigma_bse\. "
            + (r"Did you mean sigma_base\?" if mode == "maspo" else "Check the spelling"),
        )
        for mode, method in DEFAULT_METHODS.items()
    ),
    *(
        (
            {"ratio_mode": mode, "config": other.config},
            TypeError,
            rf"config: expected a {type(method.config).__name__} for ratio_mode='{mode}', got {type(other.config).__name__}\. "
            rf"Pass ratio_mode={MODES_OF.get(other.mode, repr(other.mode))} with it",
        )
        for (mode, method), other in itertools.product(DEFAULT_METHODS.items(), DEFAULT_METHODS.values())
        if type(method.config) is not type(other.config)  # a subclass, too: it has other defaults and may be another method
    ),
    (
        {"ratio_mode": "dac", "clip_ratio_low": 0.2},
        TypeError,
        r"FRONT: expected keywords of DacConfig .*, got clip_ratio_low",
    ),
    ({"ratio_mode": "ppo", "alpha": 0.2}, TypeError, r"FRONT: expected keywords of PpoConfig .*, got alpha"),
    (
        {"ratio_mode": "ppo", "clip_low": 0.2, "clip_ratio_low": 0.2},
        TypeError,
        r"FRONT: expected clip_ratio_low once, got it twice, .* \(clip_low, clip_ratio_low\)\. Drop",
    ),
    (
        {"ratio_mode": "sapo", "config": maspo_ext.SapoConfig(), "tau_pos": 0.3},
        TypeError,
        r"FRONT: expected either config or hyper-parameters as keywords, got both \(tau_pos\)",
    ),
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("wrong, error, message", FRONT_ERRORS)
def test_fronts(front, wrong, error, message):
    with pytest.raises(error, match=f"maspo_ext: {message.replace('FRONT', front)}"):
        FRONTS[front](**wrong)


THRESHOLDS = [
    ("2", None),
    (2, None),
    ((0.5, 2), None),
    ([0.5, 2.0], None),
    ("0.5_2", None),
    ("0.5-2", 'a number, a pair (lower, upper), or "lower_upper"'),
    ("", "a number, a pair"),
    ("0.5_1_2", "a number, a pair"),
    ((), "a number, a pair"),
    ((1.0, 2.0, 3.0), "a number, a pair"),
    (0.0, "> 0"),
    (-2.0, "> 0"),
    ((0.0, 2.0), "> 0"),
    ("0_2", "> 0"),
    (NAN, "> 0 and finite"),
    (INF, "> 0 and finite"),
    ("0.5_inf", "> 0 and finite"),
    ("nan", "> 0 and finite"),
    ((2.0, 0.5), None),
]


@pytest.mark.parametrize("threshold, expected", THRESHOLDS, ids=repr)
def test_rollout_is_threshold(threshold, expected):
    batch = random_batch(4, 6)
    if expected is not None:
        remedy = re.escape("One number truncates (TIS), two mask what lies outside (IcePop).")
        message = f"maspo_ext: rollout_is_threshold: expected {re.escape(expected)}.*, got .*\\. {remedy}$"
    elif threshold == (2.0, 0.5):
        message = r"maspo_ext: rollout_is_threshold: expected >= its lower bound = 2\.0, got 0\.5\. "
    else:
        maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)
        message = (
            r"maspo_ext: rollout_is_weights: expected a tensor, since rollout_is_threshold = .*, got None\. Pass the weights"
        )
        del batch["rollout_is_weights"]
    with pytest.raises(ValueError, match=message):
        maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)


@pytest.mark.parametrize("threshold", [True, {"upper": 2.0}, (None, 2.0), ("0.5", "2")], ids=repr)
def test_rollout_is_threshold_of_another_type(threshold):
    with pytest.raises(
        TypeError, match="maspo_ext: rollout_is_threshold: expected a number, > 0.*, got .*One number truncates"
    ):
        maspo_ext.policy_loss(**random_batch(4, 6), rollout_is_threshold=threshold)


@pytest.mark.parametrize("mode", [mode for mode in DEFAULT_METHODS if mode != "bapo"])
def test_only_bapo_reduces_sums(mode):
    def never(sums):
        raise AssertionError

    batch = random_batch(4, 6, entropy=True)
    with pytest.raises(
        ValueError, match=r"all_reduce_sums: expected None for \w+Config, got .*\. Only bapo has sums: drop it"
    ):
        maspo_ext.policy_loss(**batch, ratio_mode=mode, all_reduce_sums=never)


@pytest.mark.parametrize(
    "reduced, error, text",
    [
        (lambda sums: sums[:3], ValueError, r"all_reduce_sums: expected sums like those that it gets \(\[22\], torch.float64, cpu\), got \[3\], torch.float64, cpu. Return"),
        (lambda sums: sums.float(), ValueError, r"got \[22\], torch.float32, cpu. Return their sum over the ranks, or None."),
        (lambda sums: 3, TypeError, "all_reduce_sums: expected a function that adds in place, or returns a tensor or a Work of torch.distributed, got 3 from it"),
    ],
)  # fmt: skip
def test_what_all_reduce_sums_returns(reduced, error, text):
    with pytest.raises(error, match=text):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", all_reduce_sums=reduced)


def test_tensors_are_checked_before_the_sums_are_taken():
    called = []
    for wrong in ({"advantages": ones(3)}, {"entropy": ones(4, 5)}, {"old_log_prob": ones(4, 6, device="meta")}):
        with pytest.raises(ValueError, match=f"maspo_ext: {next(iter(wrong))}: expected"):
            maspo_ext.policy_loss(
                **{**random_batch(4, 6, dtype=torch.float32), **wrong}, ratio_mode="bapo", all_reduce_sums=called.append
            )
    assert not called


@pytest.mark.parametrize(
    "wrong",
    [{"log_prob": [[0.0]]}, {"alpha": "0.3"}, {"dp_size": 1.5}, {"sigma_bse": 1.0}, {"hyper": "0.3"}, {"kl_type": 3}],
    ids=repr,
)
def test_wrong_python_types_are_refused_by_the_schema_and_name_the_argument(wrong):
    with pytest.raises((RuntimeError, TypeError), match=next(iter(wrong))):
        op(**{**random_batch(4, 6), **wrong})


def test_a_missing_argument_is_named():
    batch = random_batch(4, 6)
    del batch["response_mask"]
    with pytest.raises((RuntimeError, TypeError), match="response_mask"):
        op(**batch)


BELOW = {
    "old_log_prob": ones(4, 5),
    "advantages": ones(3),
    "response_mask": ones(24),
    "rollout_is_weights": ones(6),
    "entropy": ones(5, 6),
    "ref_log_prob": ones(4, 6, 1),
    "method": "ppo",
    "hyper": [1.0] * 13,
    "loss_agg_mode": "mean",
    "kl_type": "low_var_kl",  # one of verl's names, which the op translates
    "clip_bounds": torch.ones(3, dtype=torch.float64),  # not for the method "maspo"
}


@pytest.mark.parametrize("name", BELOW)
def test_the_kernel_is_safe_below_the_validation_too(name):
    """loss_forward is public: a wrong shape must not read out of bounds."""
    with pytest.raises(RuntimeError, match=rf"maspo_ext: {name}: expected .*, got .*\. \w+"):
        torch.ops.maspo.loss_forward(**{**random_batch(4, 6, dtype=torch.float32), **KERNEL, name: BELOW[name]})


@pytest.mark.parametrize(
    "name, dtype, got", [("log_prob", torch.int64, "Long"), ("log_prob", COMPLEX, "ComplexFloat"), ("response_mask", COMPLEX, "ComplexFloat")]
)  # fmt: skip
def test_a_dtype_that_no_kernel_reads_is_named(name, dtype, got):
    batch = {**random_batch(4, 6, dtype=torch.float32), **KERNEL, name: ones(4, 6, dtype=dtype)}
    with pytest.raises(RuntimeError, match=rf"maspo_ext: {name}: expected a dtype of floats.*, got {got}\. Cast"):
        torch.ops.maspo.loss_forward(**batch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_prob": ones(3, 3)},
        {"old_log_prob": ones(8)},
        {"advantages": ones(2)},
        {"response_mask": ones(3, 3)},
        {"cu_seqlens": torch.tensor([0, 4, 9], dtype=torch.int32)},
        {"cu_seqlens": torch.tensor([[0, 4, 9]])},
        {"cu_seqlens": torch.tensor([0, 0, 4, 4, 9, 9])[::2]},
        {"cu_seqlens": torch.zeros(0, dtype=torch.int64)},
        {"cu_seqlens": torch.tensor([0, 4, 99])},
        {"max_seqlen": None},
        {"max_seqlen": -5},
    ],
    ids=str,
)
def test_packed_shapes_are_checked_below_the_validation_too(wrong):
    candidates = {"lower": [0.8], "upper": [1.2]}
    for function, keywords in ((torch.ops.maspo.loss_forward, KERNEL), (torch.ops.maspo.bapo_sums, candidates)):
        function(**packed(), **keywords)
        with pytest.raises(RuntimeError, match=next(iter(wrong))):
            function(**packed(**wrong), **keywords)


@pytest.mark.parametrize("shape", [(2,), (4,), ()], ids=str)
def test_clip_bounds_are_checked(shape):
    kernel = {"method": "clip", "hyper": [], "clip_ratio_c": 3.0}
    batch = random_batch(4, 6, dtype=torch.float32)
    right = torch.tensor([0.8, 1.2, 1.0], dtype=torch.float64)
    torch.ops.maspo.loss_forward(**batch, **kernel, clip_bounds=right)
    for wrong in (torch.ones(shape, dtype=torch.float64), right.float(), right.repeat(2)[::2]):
        with pytest.raises(RuntimeError, match="clip_bounds: expected what bapo_bounds returned, with method='clip', got .* of shape"):
            torch.ops.maspo.loss_forward(**batch, **kernel, clip_bounds=wrong)


def test_bapo_ops_check_what_they_get():
    batch = random_batch(4, 6, weights=False)
    search = {"target": 1.0, "eps": 1e-8, "upper_first": False}
    for lower, upper in (([], [1.2]), ([0.8], []), ([0.8] * 100, [1.2] * 29)):
        with pytest.raises(RuntimeError, match=f"lower, upper: expected .* at most 128 together, got {len(lower)} and {len(upper)}. Pass"):
            torch.ops.maspo.bapo_sums(**batch, lower=lower, upper=upper)
        with pytest.raises(RuntimeError, match="maspo_ext: lower, upper: expected"):
            torch.ops.maspo.bapo_bounds(torch.ones(2).double(), lower=lower, upper=upper, **search)
    for name, value in (
        ("entropy", ones(4, 5).double()),
        ("advantages", ones(3).double()),
        ("log_prob", ones(24).double()),
    ):
        with pytest.raises(RuntimeError, match=name):
            torch.ops.maspo.bapo_sums(**{**batch, name: value}, lower=[0.8], upper=[1.2])
    for sums in (torch.ones(2), torch.ones(3).double(), torch.ones(1, 2).double(), torch.ones(4).double()[::2]):
        with pytest.raises(RuntimeError, match="maspo_ext: sums .*: expected what torch.ops.maspo.bapo_sums returned for the .* candidates, got .* of shape"):
            torch.ops.maspo.bapo_bounds(sums, lower=[0.8], upper=[1.2], **search)
    config = maspo_ext.BapoConfig()
    for sums in (torch.ones(17).double(), torch.ones(18)):
        with pytest.raises(RuntimeError, match="maspo_ext: sums .*: expected what torch.ops.maspo.bapo_sums returned for the .* candidates, got .* of shape"):
            op(**batch, ratio_mode="bapo", hyper=config.hyper(), bapo_sums=sums)


def test_loss_backward_checks_what_it_gets():
    loss, _, dlogp, row_scale = torch.ops.maspo.loss_forward(**random_batch(4, 6, dtype=torch.float32), **KERNEL)
    right = {"grad_loss": torch.ones_like(loss), "dlogp": dlogp, "row_scale": row_scale, "dtype": torch.float32}
    assert torch.ops.maspo.loss_backward(**right).shape == (4, 6)
    for wrong in (
        {"grad_loss": ones(2)},
        {"grad_loss": torch.ones((), dtype=torch.float64)},
        {"dlogp": dlogp.t()},
        {"dlogp": dlogp.double()},
        {"dlogp": dlogp.flatten()},
        {"row_scale": row_scale[:3]},
        {"row_scale": row_scale.float()},
        {"dtype": torch.float64},
        {"dtype": torch.int64},
        {"cu_seqlens": torch.tensor([0, 24]), "max_seqlen": 24},
    ):
        with pytest.raises(RuntimeError, match=r"maspo_ext: \w+.*: expected .*, got .*\. \w+"):
            torch.ops.maspo.loss_backward(**{**right, **wrong})
    del right["dtype"]
    for grad in (dlogp.new_empty(6, 4).t(), dlogp.new_empty(4, 5), torch.empty_like(dlogp, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="maspo_ext: (grad|dlogp, row_scale): expected .*, got .*(Make it|Pass them)"):
            torch.ops.maspo.loss_backward_out(**right, grad=grad)


# An editable install adds a finder that would lend the copy the library of the source tree.
IMPORT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
import maspo_ext
"""


def import_from_copy(folder: Path, library: bytes | None, source_tree: bool) -> subprocess.CompletedProcess:
    """``import maspo_ext`` in another process, from a copy of the package whose library is missing or ``library``."""
    package = folder / "maspo_ext"
    copytree(Path(maspo_ext.__file__).parent, package, ignore=ignore_patterns("*.so", "__pycache__", "integrations"))
    if library is not None:
        (package / "_C.abi3.so").write_bytes(library)
    if source_tree:
        (folder / "csrc").mkdir()
    return subprocess.run([sys.executable, "-c", IMPORT], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "library, source_tree, cause, remedy",
    [
        (None, True, "No module named 'maspo_ext._C'", "pip install -e ."),
        (None, False, "No module named 'maspo_ext._C'", "pip install --force-reinstall --no-deps .` in a checkout"),
        (b"no library", False, "_C.abi3.so", "pip install --force-reinstall --no-deps .` in a checkout"),
    ],
)
def test_broken_extension(library, source_tree, cause, remedy, tmp_path):
    completed = import_from_copy(tmp_path, library, source_tree)
    assert completed.returncode != 0
    message = completed.stderr[completed.stderr.rindex("ImportError: maspo_ext: ") :]
    for part in (
        "maspo_ext._C cannot be loaded",
        "pid ",
        sys.executable,
        f"torch {torch.__version__}",
        "Cause: ",
        cause,
        "Remedy: ",
        remedy,
    ):
        assert part in message, part


SUGGESTIONS = [
    ({"sigma_bse": 1.0}, "sigma_base"),
    ({"rollout_is_treshold": 2.0}, "rollout_is_threshold"),
    ({"loss_agg_mod": "token-sum"}, "loss_agg_mode"),
    ({"beta": 0.1}, "kl_coef"),
    ({"epsilon_high": 0.3}, "clip_ratio_high"),
    ({"mask": None}, "response_mask"),
]


@pytest.mark.parametrize("wrong, meant", SUGGESTIONS, ids=str)
def test_a_misspelt_keyword_is_understood(wrong, meant):
    with pytest.raises(TypeError, match=rf"got {next(iter(wrong))}\. Did you mean {meant}\?"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


def test_a_keyword_of_another_mode_is_known():
    with pytest.raises(TypeError, match=r"got eps_high\. It belongs to ratio_mode='dac'\."):
        maspo_ext.policy_loss(**random_batch(4, 6), eps_high=0.2)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dual_clip": "yes"}, "dual_clip: expected True or False, got 'yes'"),
        ({"kl_type": None}, "kl_type: expected one of k1, .*, got None"),
        ({"kl_type": 3}, "kl_type: expected one of k1, .*, got 3"),
        ({"ratio_mode": "bapo", "all_reduce_sums": True}, "all_reduce_sums: expected a function of one tensor, got True"),
        ({"dp_size": "2"}, r"dp_size: expected a whole number >= 1, got '2' \(str\)"),
        ({"dp_size": 1.5}, r"dp_size: expected a whole number >= 1, got 1\.5\. It is"),
        ({"batch_num_tokens": 7.25}, r"batch_num_tokens: expected a whole number >= 0, got 7\.25\. It is"),
    ],
    ids=str,
)
def test_no_value_of_the_wrong_type_gets_to_the_dispatcher(wrong, message):
    with pytest.raises((TypeError, ValueError), match=f"maspo_ext: {message}"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


@pytest.mark.parametrize("mode", ["maspo", "bapo"])
def test_max_seqlen_may_be_of_numpy(mode):
    losses = [maspo_ext.policy_loss(**packed(max_seqlen=kind(5)), ratio_mode=mode).loss for kind in (int, numpy.int64, numpy.int32)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    sums = []
    for kind in (int, numpy.int64):
        maspo_ext.policy_loss(**packed(max_seqlen=kind(5)), ratio_mode="bapo", all_reduce_sums=sums.append)
    assert torch.equal(*sums)


# Beyond the kernels' numbers, or beyond any float: the dispatcher would answer with its schema.
TOO_LARGE = [
    *(
        ({name: 10**30}, f"{name}: expected a whole number >= {least} and <= 2\\*\\*53, got {10**30}")
        for name, least in (("batch_num_tokens", 0), ("global_batch_size", 0), ("dp_size", 1))
    ),
    ({"batch_num_tokens": 10**400}, "batch_num_tokens: expected a whole number >= 0 and finite, got an int of 1329 bits"),
    ({"alpha": 10**400}, "alpha: expected >= 0 and finite, got an int of 1329 bits"),
    ({"sigma_high": 10**5000}, r"sigma_high: expected >= sigma_base = 1.0 \(inf for no bound\), got an int of 16610 bits"),
    ({"loss_scale_factor": 10**400}, "loss_scale_factor: expected > 0 and finite, got an int of 1329 bits"),
    ({"rollout_is_threshold": 10**400}, "rollout_is_threshold: expected > 0 and finite, got an int of 1329 bits"),
]


@pytest.mark.parametrize("wrong, message", TOO_LARGE, ids=[f"{next(iter(row[0]))}-{i}" for i, row in enumerate(TOO_LARGE)])
def test_a_number_too_large_for_the_kernels(wrong, message):
    with pytest.raises(ValueError, match=f"^maspo_ext: {message}. \\w+"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


def test_max_seqlen_too_large():
    with pytest.raises(ValueError, match=r"max_seqlen: expected a whole number >= 0 and <= 2\*\*53, got 1180591620717411303424\. It is"):
        maspo_ext.policy_loss(**packed(max_seqlen=2**70))


LAYOUTS = {
    "torch.sparse_coo": torch.Tensor.to_sparse,
    "torch.sparse_csr": torch.Tensor.to_sparse_csr,
    "torch._mkldnn": torch.Tensor.to_mkldnn,
    "torch.jagged": lambda value: torch.nested.nested_tensor(list(value), layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["log_prob", "advantages", "response_mask"])
def test_a_layout_that_no_kernel_reads(name, layout):
    batch = random_batch(4, 6, dtype=torch.float32) | {"advantages": ones(4, 6), "response_mask": ones(4, 6)}
    remedy = rf"Pass its \.values\(\), {name}\.offsets\(\) as cu_seqlens" if "jagged" in layout else rf"Convert it: {name}\.to_dense\(\)"
    for function in (op, maspo_ext.policy_loss):
        with pytest.raises(TypeError, match=rf"maspo_ext: {name}: expected a dense tensor .*, got {layout}\. {remedy}"):
            function(**{**batch, name: LAYOUTS[layout](batch[name])})


def test_a_threshold_is_called_by_its_name():
    """And not by those of its bounds, which are the op's."""
    batch = random_batch(4, 6, weights=False)
    for threshold in (2.0, (0.5, 2.0), "0.5_2"):
        message = re.escape(f"rollout_is_weights: expected a tensor, since rollout_is_threshold = {threshold!r}, got None. Pass the")
        with pytest.raises(ValueError, match=message):
            maspo_ext.policy_loss(**batch, rollout_is_threshold=threshold)


def test_ranks_without_a_reduction_of_bapos_sums():
    for dp_size in (2, 2.0, numpy.int64(2)):
        with pytest.raises(
            ValueError, match="^maspo_ext: all_reduce_sums: expected a function .* over all 2.* data-parallel ranks.*, got None. Pass torch.distributed"
        ):
            maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", dp_size=dp_size, batch_num_tokens=8)
    with pytest.raises(TypeError, match="dp_size: expected a whole number >= 1, got '2'"):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode="bapo", dp_size="2")


def test_max_seqlen_is_an_int():
    with pytest.raises(TypeError, match=r"max_seqlen: expected an int, got 5\.0 \(float\)"):
        maspo_ext.policy_loss(**packed(max_seqlen=5.0))


# A name that is no mode: of a paper whose clip is one, of another method, misspelt.
NO_MODES = {
    "dapo": r"Did you mean clip_higher, the clip of DAPO\?",
    "DCPO": r"Did you mean dac, the clip of DCPO\?",
    "gspo": "Choose one of these",
    "GMPO": "Choose one of these",
    "gpro": r"Did you mean grpo\?",
    "sappo": r"Did you mean sapo\?",
}


@pytest.mark.parametrize("name", NO_MODES)
def test_a_name_that_is_no_mode(name):
    with pytest.raises(ValueError, match=rf"ratio_mode: expected one of {ALL_MODES}, got '{name}'\. {NO_MODES[name]}"):
        maspo_ext.policy_loss(**random_batch(4, 6), ratio_mode=name)


def test_no_mode_is_among_the_methods_that_are_not_here():
    assert {*NOT_HERE, *CLIP_OF} & set(maspo_ext.RATIO_MODES) == set()
    assert set(CLIP_OF.values()) <= set(maspo_ext.RATIO_MODES)


def test_stat_names_of_no_mode():
    with pytest.raises(ValueError, match=r"ratio_mode: expected one of maspo, .*, got 'mapso'\. Did you mean maspo\?"):
        maspo_ext.stat_names("mapso")


@pytest.mark.parametrize("number", [int, float, numpy.float32, numpy.float64, numpy.int64], ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_and_whole_floats(number):
    batch = random_batch(4, 6)
    batch["ref_log_prob"] = batch["old_log_prob"]
    given = {"batch_num_tokens": 8, "dp_size": 2, "kl_coef": 2, "sigma_base": 2, "loss_scale_factor": 4}
    expected = maspo_ext.policy_loss(**batch, **given)
    actual = maspo_ext.policy_loss(**batch, **{name: number(value) for name, value in given.items()})
    assert torch.equal(actual.loss, expected.loss)


@pytest.mark.parametrize("front", [op, maspo_ext.policy_loss], ids=["op", "policy_loss"])
def test_a_gradient_of_the_old_policy_alone_is_a_swap(front):
    """verl's losses take old_log_prob first; a loss that looks trained and trains nothing would follow."""
    batch = random_batch(4, 6)
    batch["old_log_prob"].requires_grad_()
    with pytest.raises(ValueError, match="old_log_prob: expected a tensor without gradient.*swap"):
        front(**batch)
    with torch.no_grad():
        assert not front(**batch)[0].requires_grad
    batch["log_prob"].requires_grad_()
    front(**batch)[0].backward()
    assert batch["old_log_prob"].grad is None and batch["log_prob"].grad.any()


@pytest.mark.parametrize("front", [op, maspo_ext.policy_loss], ids=["op", "policy_loss"])
def test_without_a_trained_tensor_the_loss_has_no_gradient(front):
    batch = random_batch(4, 6)
    batch["advantages"].requires_grad_()
    assert not front(**batch)[0].requires_grad
