"""Every wrong argument of the op: the message names it, what was expected, what came, and what to do."""

import re

import pytest
import torch

import maspo_ext

from .cases import DEFAULT_METHODS, GLOBAL_COUNTS, every_mode, op, random_batch
from .wrong import INF, NAN, NUMBERS, PACKED, explains, named, ones, packed

# Rows as those of NUMBERS.
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
