"""What the C++ kernels check themselves: their ops are public, and below the validation in Python."""

import pytest
import torch

import maspo_ext

from .cases import KERNEL, op, random_batch
from .wrong import ones, packed

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
    "name, dtype, got", [("log_prob", torch.int64, "Long"), ("log_prob", torch.complex64, "ComplexFloat"), ("response_mask", torch.complex64, "ComplexFloat")]
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


def test_packed_settings_are_checked():
    batch = random_batch(4, 6, dtype=torch.float32)
    right = torch.ops.maspo.loss_settings(**KERNEL)
    for packed_loss, loss in zip(torch.ops.maspo.loss_forward_packed(**batch, settings=right), torch.ops.maspo.loss_forward(**batch, **KERNEL), strict=True):
        assert torch.equal(packed_loss, loss)
    names = (0, 1, 8)  # of the method, the aggregation and the KL estimate
    for wrong in ([], right[1:], [*right, 0.0], *([*right[:i], bad, *right[i + 1 :]] for i in names for bad in (-1.0, 99.0, float("nan")))):
        with pytest.raises(RuntimeError, match=r"maspo_ext: settings: expected what loss_settings returned, got \d+ numbers .*\. Pass"):
            torch.ops.maspo.loss_forward_packed(**batch, settings=wrong)


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
    loss, _, dlogp, scales = torch.ops.maspo.loss_forward(**random_batch(4, 6, dtype=torch.float32), **KERNEL)
    right = {"grad_loss": torch.ones_like(loss), "dlogp": dlogp, "scales": scales, "dtype": torch.float32}
    assert torch.ops.maspo.loss_backward(**right).shape == (4, 6)
    for wrong in (
        {"grad_loss": ones(2)},
        {"grad_loss": torch.ones((), dtype=torch.float64)},
        {"dlogp": dlogp.t()},
        {"dlogp": dlogp.double()},
        {"dlogp": dlogp.flatten()},
        {"scales": scales[:3]},
        {"scales": scales.float()},
        {"dtype": torch.float64},
        {"dtype": torch.int64},
        {"cu_seqlens": torch.tensor([0, 24]), "max_seqlen": 24},
    ):
        with pytest.raises(RuntimeError, match=r"maspo_ext: \w+.*: expected .*, got .*\. \w+"):
            torch.ops.maspo.loss_backward(**{**right, **wrong})
    del right["dtype"]
    for grad in (dlogp.new_empty(6, 4).t(), dlogp.new_empty(4, 5), torch.empty_like(dlogp, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="maspo_ext: (grad|dlogp, scales): expected .*, got .*(Make it|Pass them)"):
            torch.ops.maspo.loss_backward_out(**right, grad=grad)
