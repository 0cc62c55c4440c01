"""Every wrong argument of the three fronts: the message names it, what was expected, what came, and what to do."""

import numpy
import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor

import maspo_ext
from maspo_ext.stats import INVALID_TARGETS

from .cases import random_head, random_rows

H, V = 8, 30


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


def head(**wrong):
    return {**random_head((4, 6), H, V, bias=True), **wrong}


def batch(**wrong):
    return {**head(), **{name: ones(4, 6) for name in ("old_log_prob", "advantages", "response_mask")}, **wrong}


def message(what, expected, got, remedy):
    return f"^maspo_ext: {what}: expected .*{expected}.*, got .*{got}.*{remedy}"


def zero3_weight():
    weight = torch.nn.Parameter(torch.empty(0))
    weight.ds_shape = torch.Size([V, H])
    return weight


TARGETS = [
    ({"target": ones(4, 6)}, TypeError, "target", "dtype in int64", "torch.float32", r"target\.to\("),
    ({"target": ones(4, 6, dtype=torch.bool)}, TypeError, "target", "dtype in int64", "torch.bool", r"target\.to\("),
    ({"target": ones(24, dtype=int)}, ValueError, "target", r"shape \[4, 6\]", r"\[24\]", "do not flatten one only"),
    ({"target": ones(4, 7, dtype=int)}, ValueError, "target", r"shape \[4, 6\]", r"\[4, 7\]", "shift them"),
    ({"target": ones(4, 6, dtype=int, device="meta")}, ValueError, "target", "device cpu", "meta", "Move it"),
]
TEMPERATURES = [
    ({"temperature": 0.0}, ValueError, "temperature", "> 0", "0.0", "divides the logits"),
    ({"temperature": -1.0}, ValueError, "temperature", "> 0", "-1.0", "divides the logits"),
    ({"temperature": float("nan")}, ValueError, "temperature", "> 0 and finite", "nan", "divides the logits"),
    ({"temperature": 1e300}, ValueError, "temperature", "1e-30 to 1e30", "1e\\+300", "divides the logits"),
    ({"temperature": 1e-45}, ValueError, "temperature", "1e-30 to 1e30", "1e-45", "divides the logits"),
    ({"temperature": 10**400}, ValueError, "temperature", "> 0 and finite", "an int of 1329 bits", "divides the logits"),
    ({"temperature": float("inf")}, ValueError, "temperature", "> 0 and finite", "inf", "divides the logits"),
]
LOGITS = [
    ({"logits": ones(4, 6, 30, dtype=int)}, TypeError, "logits", "dtype in float32", "torch.int64", r"logits\.to\("),
    ({"logits": ones(4, 6, 0)}, ValueError, "logits", "V > 0", r"\[4, 6, 0\]", "at least one word"),
    ({"logits": ones(())}, ValueError, "logits", r"\[..., V\]", r"\[\]", "at least one word"),
]
HEADS = [
    ({"weight": ones(V * H // 2)}, ValueError, "weight", r"\[V, H\]", r"\[120\]", "shard of FSDP.*summon_full_params"),
    ({"weight": ones(0)}, ValueError, "weight", r"\[V, H\]", r"\[0\]", "shard of FSDP or ZeRO-3"),
    ({"weight": ones(0, H)}, ValueError, "weight", r"\[V, H\]", r"\[0, 8\]", "shard of FSDP or ZeRO-3"),
    (
        {"hidden": ones(4, 6, 0), "weight": ones(V, 0)},
        ValueError,
        "weight",
        r"\[V, H\]",
        r"\[30, 0\]",
        "shard of FSDP or ZeRO-3",
    ),
    ({"weight": ones(V, H).to_sparse()}, TypeError, "weight", "a dense tensor", "sparse_coo", r"weight\.to_dense\(\)"),
    (
        {"weight": zero3_weight()},
        ValueError,
        "weight",
        r"\[V, H\]",
        r"\[0\]",
        r"ZeRO-3 \(whole: \[30, 8\]\).*GatheredParameters",
    ),
    ({"weight": ones(2, V, H)}, ValueError, "weight", r"\[V, H\]", r"\[2, 30, 8\]", "lm_head.weight"),
    (
        {"weight": ones(H, V)},
        ValueError,
        "hidden",
        r"H = 30 \(from weight \[V, H\] = \[8, 30\]\)",
        r"\[4, 6, 8\]",
        "transposed",
    ),
    ({"weight": ones(V, H + 1)}, ValueError, "hidden", "H = 9", r"\[4, 6, 8\]", "another model"),
    (
        {"weight": ones(V, H, dtype=torch.bfloat16)},
        TypeError,
        "weight",
        r"dtype torch.float32 \(that of hidden\)",
        "torch.bfloat16",
        "autocast",
    ),
    ({"hidden": None}, TypeError, "hidden", "a torch.Tensor", "NoneType", "required"),
    ({"weight": None}, TypeError, "weight", "a torch.Tensor", "NoneType", "required"),
    ({"weight": ones(V, H, dtype=int)}, TypeError, "weight", "dtype in float32", "torch.int64", r"weight\.to\("),
    ({"weight": ones(V, H, device="meta")}, ValueError, "weight", "device cpu", "meta", "Move it"),
    ({"bias": ones(V, dtype=torch.float64)}, TypeError, "bias", "dtype torch.float32", "torch.float64", "Cast"),
    ({"bias": ones(V + 1)}, ValueError, "bias", r"\[V\] = \[30\]", r"\[31\]", "head's own"),
    ({"bias": ones(1, V)}, ValueError, "bias", r"\[V\] = \[30\]", r"\[1, 30\]", "head's own"),
    ({"memory_budget": 0}, ValueError, "memory_budget", "a whole number >= 1", "0", "bytes"),
    ({"memory_budget": -5}, ValueError, "memory_budget", "a whole number >= 1", "-5", "bytes"),
    ({"memory_budget": 2**70}, ValueError, "memory_budget", r"<= 2\*\*53", f"{2**70}", "bytes"),
]
TENSORS = [
    ({"old_log_prob": ones(4, 5)}, ValueError, "old_log_prob", r"\[4, 6\]", r"\[4, 5\]", "slice"),
    ({"response_mask": ones(4, 6, dtype=torch.complex64)}, TypeError, "response_mask", "dtype", "complex64", ""),
    ({"response_mask": ones(4, 7)}, ValueError, "response_mask", r"\[4, 6\] \(that of target\)", r"\[4, 7\]", "slice"),
    ({"response_mask": None}, TypeError, "response_mask", "a torch.Tensor", "NoneType", ""),
    ({"advantages": ones(6)}, ValueError, "advantages", r"\[B, 1\] or \[B\]", r"\[6\]", "slice"),
]
def raw(op, *tensors, **keywords):
    """An op below the checks of the call, without gradients."""
    with torch.no_grad():
        return getattr(torch.ops.maspo, op)(*tensors, **keywords)


@pytest.mark.parametrize("of_target", [(3, 6), (5, 6), (4,)], ids=str)
def test_the_ops_inside_check_shapes(of_target):
    """They would read what nobody has written."""
    hidden, weight, target = torch.randn(4, 6, 8), torch.randn(11, 8), torch.zeros(of_target, dtype=torch.int64)
    rows, state = torch.zeros(of_target), torch.zeros(*of_target, 2, dtype=torch.float64)
    calls = {
        "linear_logprob_forward": (hidden, weight, target),
        "linear_logprob_backward": (rows, None, hidden, weight, target, rows, state),
    }
    for op, tensors in calls.items():
        with pytest.raises(ValueError, match=r"target: expected shape \[4, 6\] \(that of hidden"):
            raw(op, *tensors, ignore_index=-100)
    policy = {"method": "maspo", "hyper": maspo_ext.MaspoConfig().kernel_hyper(), "clip_ratio_c": 3.0}
    with pytest.raises(ValueError, match=r"target: expected shape \[4, 6\] \(that of hidden"):
        raw("linear_loss_forward", hidden, weight, target, rows, rows, torch.ones(of_target), **policy)


LOSSES = [
    ({"log_prob": ones(4, 6)}, ValueError, "log_prob", "nothing, since linear_loss makes it", "a value", "policy_loss"),
    ({"entropy": ones(4, 6)}, ValueError, "entropy", "nothing, since linear_loss makes it", "a value", "entropy_alpha"),
    ({"all_reduce_sums": print}, ValueError, "all_reduce_sums", "None", "a function", "Drop"),
    ({"sigma_hihg": 0.2}, TypeError, "linear_loss", "keywords of MaspoConfig", "sigma_hihg", "Did you mean sigma_high"),
    (
        {"ratio_mode": "dac", "eps_hihg": 0.2},
        TypeError,
        "linear_loss",
        r"keywords of DacConfig \(eps_low, eps_high",
        "eps_hihg",
        "Did you mean eps_high",
    ),
    ({"ratio_mode": "pppo"}, ValueError, "ratio_mode", "one of maspo", "'pppo'", "Did you mean ppo"),
    ({"config": maspo_ext.SapoConfig()}, TypeError, "config", "a MaspoConfig", "SapoConfig", "Pass ratio_mode='sapo' with it"),
    ({"alpha": -1.0}, ValueError, "alpha", ">= 0", "-1.0", ""),
    ({"loss_agg_mode": "mean"}, ValueError, "loss_agg_mode", "one of", "'mean'", "Choose"),
    ({"kl_coef": 0.1}, ValueError, "ref_log_prob", "a tensor, since kl_coef", "None", ""),
    ({"rollout_is_threshold": 2.0}, ValueError, "rollout_is_weights", "since rollout_is_threshold = 2.0", "None", "Pass the weights"),
    ({"max_seqlen": 6}, ValueError, "max_seqlen", "None without cu_seqlens", "6", "pass cu_seqlens"),
]


def named(cases):
    return pytest.mark.parametrize(
        "wrong, error, what, expected, got, remedy",
        cases,
        ids=[f"{next(iter(case[0]))}-{i}" for i, case in enumerate(cases)],
    )


@named(LOGITS + TARGETS + TEMPERATURES)
def test_logprob(wrong, error, what, expected, got, remedy):
    logits, _ = random_rows(24, V)
    arguments = {"logits": logits.view(4, 6, V), "target": ones(4, 6, dtype=int), **wrong}
    with pytest.raises(error, match=message(what, expected, got, remedy)):
        maspo_ext.logprob(**arguments)


@named(HEADS + TARGETS + TEMPERATURES)
def test_linear_logprob(wrong, error, what, expected, got, remedy):
    with pytest.raises(error, match=message(what, expected, got, remedy)):
        maspo_ext.linear_logprob(**head(**wrong))


@named(HEADS + TARGETS + TEMPERATURES + TENSORS)
def test_linear_loss_of_a_mode_that_takes_two_ops(wrong, error, what, expected, got, remedy):
    with pytest.raises(error, match=message(what, expected, got, remedy)):
        maspo_ext.linear_loss(**batch(**wrong), ratio_mode="bapo")


@named(HEADS + TARGETS + TEMPERATURES + TENSORS + LOSSES)
def test_linear_loss(wrong, error, what, expected, got, remedy):
    with pytest.raises(error, match=message(what, expected, got, remedy)):
        maspo_ext.linear_loss(**batch(**wrong))


@pytest.fixture
def mesh():
    """One process that is a group by itself."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


VOCAB_PARALLEL = {
    "vocab_parallel_logprob": lambda: {"logits": ones(4, 6, V), "target": ones(4, 6, dtype=int)},
    "vocab_parallel_linear_logprob": head,
}
SHARDS = [
    ({"ignore_index": None}, TypeError, "ignore_index: expected an int, got None. -100 is the default"),
    ({"ignore_index": 2**70}, ValueError, f"ignore_index: expected an int of 64 bits, as targets are, got {2**70}. -100"),
    ({"first_word": "a", "all_words": V}, TypeError, r"first_word: expected a whole number >= 0, got 'a' \(str\). Where does"),
    ({"first_word": 1.5, "all_words": V}, ValueError, "first_word: expected a whole number >= 0, got 1.5. Where does"),
    ({"first_word": 0, "all_words": "a"}, TypeError, r"all_words: expected a whole number >= 1, got 'a' \(str\). It is"),
    ({"first_word": 1, "all_words": V}, ValueError, "first_word: expected 0 to all_words - 30 = 0, got 1. Where does"),
    (
        {"group": torch.distributed.GroupMember.NON_GROUP_MEMBER},
        ValueError,
        r"group: expected a group that this process is in, got one without this process \(rank 0 of 1\). Only the ranks",
    ),
]


@pytest.mark.parametrize("wrong, error, text", SHARDS, ids=[f"{next(iter(row[0]))}-{i}" for i, row in enumerate(SHARDS)])
@pytest.mark.parametrize("name", VOCAB_PARALLEL)
def test_shards(name, wrong, error, text, mesh):
    function, arguments = getattr(maspo_ext, name), VOCAB_PARALLEL[name]()
    function(**arguments, first_word=numpy.int64(0), all_words=V)
    with pytest.raises(error, match=f"^maspo_ext: {text}"):
        function(**arguments, **wrong)


@pytest.mark.parametrize("name", VOCAB_PARALLEL)
def test_shards_have_no_derivative_by_torch_func(name, mesh):
    arguments = VOCAB_PARALLEL[name]()
    (first, value), *others = arguments.items()

    def of(value):
        return getattr(maspo_ext, name)(**{first: value}, **dict(others)).log_prob.sum()

    for call in (lambda: torch.func.grad(of)(value), lambda: torch.func.vmap(of)(value.unsqueeze(0))):
        with pytest.raises(NotImplementedError, match=f"{name} has no derivative by torch.func: expected a plain call.*or maspo_ext.logits"):
            call()


@pytest.mark.filterwarnings("ignore")
def test_dtensors(mesh):
    def shard(value):
        return distribute_tensor(value, mesh, [Shard(0)])

    remedy = r"FSDP2: call this inside the forward.*\.to_local\(\).*\.full_tensor\(\)"
    logits, target = random_rows(4, V)
    with pytest.raises(
        TypeError, match=message("logits", "a plain tensor", r"a DTensor with placements.*Shard\(dim=0\)", remedy)
    ):
        maspo_ext.logprob(shard(logits), target)
    for name in ("hidden", "weight", "bias"):
        expected = message(name, "a plain tensor", r"a DTensor with placements.*Shard\(dim=0\)", remedy)
        with pytest.raises(TypeError, match=expected):
            maspo_ext.linear_logprob(**head(**{name: shard(head()[name])}))
        with pytest.raises(TypeError, match=expected):
            maspo_ext.linear_loss(**batch(**{name: shard(head()[name])}))
    of_loss = {name: ones(4, 6) for name in ("log_prob", "old_log_prob", "advantages", "response_mask")}
    for name in of_loss:
        remedy = rf"{name}\.to_local\(\), and the counts of all ranks; or {name}\.full_tensor\(\)"
        with pytest.raises(TypeError, match=message(name, "a plain tensor", "a DTensor with placements", remedy)):
            maspo_ext.policy_loss(**of_loss | {name: shard(of_loss[name])})


def test_right_calls_are_right():
    maspo_ext.linear_logprob(**head())
    maspo_ext.linear_loss(**batch())


@pytest.mark.parametrize(
    "wrong, got",
    [
        ({"entropy_alpha": 0.1, "entropy": ones(4, 6)}, "entropy: expected nothing, .*Drop it"),
        ({"ratio_mode": "bapo"}, "ratio_mode: expected one that needs no pass over all tokens first, got 'bapo'. Use maspo_ext.linear_loss"),
    ],
)
def test_what_the_op_of_linear_loss_cannot_do(wrong, got):
    with pytest.raises(ValueError, match=got):
        torch.ops.maspo.linear_loss(**batch(**wrong))


@pytest.mark.parametrize("ratio_mode", ["maspo", "bapo"])
def test_target_out_of_range(ratio_mode, device):
    arguments = {name: value.to(device) for name, value in batch().items()}
    arguments["target"][1, 2] = V
    if device == "cpu":
        with pytest.raises(RuntimeError, match=f"target: expected 0 to {V - 1} .*at every unmasked token, got {V} at .1, 2.. Check"):
            maspo_ext.linear_loss(**arguments, ratio_mode=ratio_mode)
        return
    output = maspo_ext.linear_loss(**arguments, ratio_mode=ratio_mode)
    assert output.loss.isnan() and output.log_prob.isnan().sum() == 1
    with pytest.raises(IndexError, match="at all unmasked tokens, got others at 1 of them"):
        output.stats.to_dict()


def test_statistics_with_targets_out_of_range():
    """On a GPU a count follows the statistics; to_dict, which waits for the device, looks at it."""
    stats = maspo_ext.linear_loss(**batch()).stats
    expected = stats.to_dict()
    for invalid in (0, 3):
        counted = maspo_ext.PolicyLossStats(
            torch.cat([stats.tensor, torch.tensor([float(invalid)])]), (*stats.names, INVALID_TARGETS)
        )
        if invalid == 0:
            assert counted.to_dict() == expected
            continue
        with pytest.raises(
            IndexError, match="target: expected words of the vocabulary.*got others at 3 of them.*tokenizer"
        ):
            counted.to_dict()


OF_ANY_TYPE = [
    ({"memory_budget": "128MiB"}, "memory_budget", "a whole number >= 1", "'128MiB'"),
    ({"memory_budget": 1.5}, "memory_budget", "a whole number >= 1", "1.5"),
    ({"temperature": None}, "temperature", "a number, > 0", "None"),
    ({"temperature": torch.ones(4, 1)}, "temperature", "a number, > 0", "tensor"),
    ({"bias": False}, "bias", "a torch.Tensor", "bool"),
    ({"weight": torch.nn.Linear(H, V)}, "weight", "a torch.Tensor", r"Linear\. Pass its \.weight"),
    ({"target": [[1] * 6] * 4}, "target", "a torch.Tensor", "list"),
]
OF_ROWS = [
    ({"ignore_index": None}, "ignore_index", "an int", "None"),
    ({"ignore_index": 2**70}, "ignore_index", "an int of 64 bits", f"{2**70}"),
]
OF_LOSS = [
    ({"response_mask": [[1] * 6] * 4}, "response_mask", "a torch.Tensor", "list"),
    ({"batch_num_tokens": 7.5}, "batch_num_tokens", "a whole number >= 0", "7.5"),
    ({"dual_clip": "yes"}, "dual_clip", "True or False", "'yes'"),
]


@pytest.mark.parametrize(
    "function, arguments, wrong, what, expected, got",
    [(maspo_ext.linear_logprob, head, *case) for case in OF_ANY_TYPE + OF_ROWS]
    + [(maspo_ext.linear_loss, batch, *case) for case in OF_ANY_TYPE + OF_LOSS],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_value_of_the_wrong_type_gets_to_the_dispatcher(function, arguments, wrong, what, expected, got):
    """Whose message is its schema."""
    with pytest.raises((TypeError, ValueError), match=f"^maspo_ext: {what}: expected .*{expected}.*, got .*{got}"):
        function(**arguments(**wrong))


@pytest.mark.parametrize(
    "wrong, what", [({"ignore_index": None}, "ignore_index"), ({"inplace_backward": "yes"}, "inplace_backward"), ({"temperature": "1"}, "temperature")], ids=str
)  # fmt: skip
def test_logprob_of_the_wrong_type(wrong, what):
    with pytest.raises(TypeError, match=f"^maspo_ext: {what}: expected"):
        maspo_ext.logprob(ones(4, 6, V), ones(4, 6, dtype=int), **wrong)


def test_an_ignore_index_may_be_of_numpy():
    arguments = head()
    expected = maspo_ext.linear_logprob(**arguments, ignore_index=3)
    assert torch.equal(maspo_ext.linear_logprob(**arguments, ignore_index=numpy.int64(3)).log_prob, expected.log_prob)


def test_a_budget_may_be_a_whole_float():
    assert torch.equal(*(maspo_ext.linear_loss(**batch(memory_budget=budget)).loss for budget in (1e6, 10**6)))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"memory_budget": 0}], ids=str)
def test_the_module_checks_its_settings_when_made(wrong):
    with pytest.raises(ValueError, match=f"maspo_ext: {next(iter(wrong))}: expected"):
        maspo_ext.LinearPolicyLoss(**wrong)
