"""Sequences packed end to end: bit for bit what the right-padded batch gives."""

import pytest
import torch

import maspo_ext

from .cases import (
    AGG_MODES,
    ALL_TENSORS,
    DEFAULT_METHODS,
    FLOAT_DTYPES,
    OPTIONS,
    Result,
    assert_same_bits,
    every_method,
    every_mode,
    op,
    run,
)

# Lengths of sequences, around the sizes at which the engines cut: 512 tokens at a time, 4096 tokens in one piece.
LENGTHS = {
    "a few": [5, 0, 17, 1, 9],
    "one": [40],
    "one token": [1],
    "empty ones only": [0, 0, 0],
    "empty ones around": [0, 3, 0, 0, 7, 0],
    "around a run": [511, 512, 513, 0, 1023, 1],
    "around a piece": [4096, 4095, 0, 4097, 1, 8193],
    "many": [(7 * i) % 13 for i in range(400)],
    "of one length": [32] * 6,
}


class Packed:
    """A padded batch of sequences of these lengths, the same one packed, and the way from one to the other."""

    def __init__(self, method, lengths, device="cpu", full=False, **options):
        self.lengths = torch.tensor(lengths, device=device)
        self.width = max(lengths, default=0)
        self.here = torch.arange(self.width, device=device) < self.lengths.unsqueeze(1)
        self.padded = (method.full_batch if full else method.batch)(len(lengths), self.width, device=device, **options)
        self.padded["response_mask"] = self.padded["response_mask"] * self.here
        if len(lengths) < 3:
            self.padded["response_mask"] = self.here.to(self.padded["response_mask"].dtype)
        self.batch = {name: value[self.here] for name, value in self.padded.items()}
        self.cu_seqlens = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    @property
    def keywords(self):
        return {"cu_seqlens": self.cu_seqlens, "max_seqlen": self.width}

    def unpacked(self, result):
        grad = torch.zeros(self.here.shape, dtype=result.grad.dtype, device=result.grad.device)
        grad[self.here] = result.grad
        return result._replace(grad=grad)

    def assert_same(self, function=op, batch=None, packed=None, **keywords):
        """The packed form has the padded form's bits; gradients of padding are 0 there. Returns the packed result."""
        expected = run(self.padded if batch is None else batch, function, **keywords)
        result = run(self.batch if packed is None else packed, function, **{**self.keywords, **keywords})
        assert result.grad.shape == self.batch["log_prob"].shape and result.grad.is_contiguous()
        # 0 and -0 are one where nothing counts.
        assert_same_bits(self.unpacked(result), expected._replace(grad=torch.where(self.here, expected.grad, 0)))
        assert not expected.grad[~self.here].any()
        return result


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@pytest.mark.parametrize("lengths", LENGTHS)
@every_method
def test_lengths(method, lengths, options, device):
    for dtype in (torch.float32, torch.float64):
        packed = Packed(method, LENGTHS[lengths], device, full=bool(options), dtype=dtype)
        result = packed.assert_same(**method.keywords, **method.takes(options), loss_agg_mode="seq-mean-token-mean")
        assert result.grad.any() or packed.batch["response_mask"].sum() < 2


@pytest.mark.parametrize("counts", ["local", "global", "factor"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_mode
def test_aggregation_and_dtypes(method, dtype, loss_agg_mode, counts, device):
    """The -norm mode divides by max_seqlen, the width of the padded form."""
    counts = {"local": {}, "global": method.global_counts, "factor": {"loss_scale_factor": 3.5}}[counts]
    packed = Packed(method, LENGTHS["a few"], device, full=True, dtype=dtype)
    result = packed.assert_same(**method.keywords, **method.takes(OPTIONS), **counts, loss_agg_mode=loss_agg_mode)
    assert result.grad.any()


@pytest.mark.parametrize("mask_dtype", [torch.int8, torch.int64, torch.float32, torch.float16], ids=str)
def test_mask_dtypes(mask_dtype, device):
    Packed(
        DEFAULT_METHODS["maspo"], LENGTHS["around a run"], device, mask_dtype=mask_dtype, dtype=torch.float32
    ).assert_same()


@every_mode
def test_int32_cu_seqlens(method, device):
    packed = Packed(method, LENGTHS["around a run"], device)
    expected = packed.assert_same(**method.keywords)
    for cu_seqlens in (
        packed.cu_seqlens.int(),
        packed.cu_seqlens.repeat_interleave(2)[::2],
        packed.cu_seqlens.int().repeat_interleave(3)[::3],
    ):
        result = run(packed.batch, **method.keywords, cu_seqlens=cu_seqlens, max_seqlen=packed.width)
        assert_same_bits(result, expected)


@pytest.mark.parametrize("lengths", ["a few", "around a piece", "no token"])
@every_mode
def test_max_seqlen_may_be_any_bound(method, lengths, device):
    """What is allocated goes by the tokens; only the width that -norm divides by is max_seqlen, however large."""
    if lengths == "no token":
        packed = Packed(method, [0, 0], device)
    else:
        packed = Packed(method, LENGTHS[lengths], device)
    keywords = {**method.keywords, "loss_agg_mode": "seq-mean-token-sum-norm"}
    expected = run(packed.batch, **keywords, loss_scale_factor=2.0**53, cu_seqlens=packed.cu_seqlens, max_seqlen=packed.width)
    result = run(packed.batch, **keywords, cu_seqlens=packed.cu_seqlens, max_seqlen=2**53)
    if device == "cpu" and method.mode != "bapo":
        # Short rows share a unit as max_seqlen says: the statistics' last bits may be others.
        assert torch.equal(result.loss, expected.loss) and torch.equal(result.grad, expected.grad)
    for actual, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@every_mode
def test_no_sequence(method, dtype, device):
    batch = {name: value[0] for name, value in method.full_batch(1, 0, device=device).items()}
    cu_seqlens = torch.zeros(1, dtype=dtype, device=device)
    for max_seqlen in (0, 7):
        result = run(batch, **method.keywords, **method.takes(OPTIONS), cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        assert float(result.loss) == 0.0 and result.grad.shape == (0,)
        if method.mode != "bapo":
            assert not result.stats.any()


@pytest.mark.parametrize(
    "names", [["advantages"], ["rollout_is_weights"], ["advantages", "rollout_is_weights"]], ids="+".join
)
@pytest.mark.parametrize("lengths", ["a few", "one", "around a piece", "of one length"])
@every_mode
def test_one_value_per_sequence(method, lengths, names, device):
    packed = Packed(method, LENGTHS[lengths], device)
    per_row = {name: packed.padded[name][:, :1] for name in names}
    padded = packed.padded | {name: value.expand(packed.here.shape) for name, value in per_row.items()}
    packed.assert_same(batch=padded, packed=packed.batch | per_row, **method.keywords)
    strided = {name: value.repeat(1, 3)[:, 1:2] for name, value in per_row.items()}
    packed.assert_same(batch=padded, packed=packed.batch | strided, **method.keywords)


def every_third(value):
    return torch.stack([value, value, value], dim=-1)[..., 1]


def inside_a_larger_tensor(value):
    return torch.cat([value[:3], value, value[:5]])[3 : 3 + len(value)]


@pytest.mark.parametrize("layout", [every_third, inside_a_larger_tensor], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_mode
def test_strides_change_no_bit(method, dtype, layout, device):
    packed = Packed(method, LENGTHS["around a run"], device, full=True, dtype=dtype)
    keywords = {**method.keywords, **method.takes(OPTIONS), **packed.keywords}
    expected = run(packed.batch, **keywords)
    for name in ALL_TENSORS:
        assert_same_bits(run(packed.batch | {name: layout(packed.batch[name])}, **keywords), expected)
    assert_same_bits(run({name: layout(value) for name, value in packed.batch.items()}, **keywords), expected)


def test_expanded_inputs(device):
    packed = Packed(DEFAULT_METHODS["maspo"], LENGTHS["around a run"], device)
    total = len(packed.batch["log_prob"])
    for name in ("advantages", "old_log_prob", "rollout_is_weights"):
        one = packed.batch[name][:1]
        keywords = packed.keywords
        expanded = run(packed.batch | {name: one.expand(total)}, **keywords)
        assert_same_bits(expanded, run(packed.batch | {name: one.repeat(total)}, **keywords))


@every_mode
def test_a_longer_max_seqlen_is_more_padding(method, device):
    """As a trainer gives one length for all its batches; only the -norm mode sees it."""
    packed = Packed(method, LENGTHS["a few"], device)
    expected = run(packed.batch, **method.keywords, **packed.keywords)
    for max_seqlen in (18, 255, 5000):
        result = run(packed.batch, **method.keywords, cu_seqlens=packed.cu_seqlens, max_seqlen=max_seqlen)
        torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-16)
        wider = run(
            packed.batch,
            **method.keywords,
            cu_seqlens=packed.cu_seqlens,
            max_seqlen=max_seqlen,
            loss_agg_mode="seq-mean-token-sum-norm",
        )
        rows = int(packed.padded["response_mask"].any(-1).sum())
        total = run(packed.batch, **method.keywords, **packed.keywords, loss_agg_mode="token-sum")
        torch.testing.assert_close(wider.grad, total.grad / rows / max_seqlen, rtol=1e-14, atol=0)


@every_mode
def test_masked_garbage_changes_no_bit(method, device):
    packed = Packed(method, LENGTHS["around a run"], device, full=True, dtype=torch.float32)
    keywords = {**method.keywords, **method.takes(OPTIONS), **packed.keywords}
    masked = packed.batch["response_mask"] == 0
    clean = run(packed.batch, **keywords)
    assert masked.any() and clean.grad.any()
    for garbage in (torch.nan, torch.inf, -1e38):
        dirty = {
            name: torch.where(masked, garbage, value) for name, value in packed.batch.items() if name != "response_mask"
        }
        assert_same_bits(run(packed.batch | dirty, **keywords), clean)


@pytest.mark.parametrize("front", ["policy_loss", "PolicyLoss"])
@every_mode
def test_through_the_fronts(method, front, device):
    packed = Packed(method, LENGTHS["around a run"], device)
    module = maspo_ext.PolicyLoss(method.mode)

    def function(**arguments):
        output = (
            module(**arguments) if front == "PolicyLoss" else maspo_ext.policy_loss(**arguments, ratio_mode=method.mode)
        )
        return output.loss, output.stats.tensor

    packed.assert_same(function)


@every_mode
def test_without_a_gradient(method, device):
    packed = Packed(method, LENGTHS["a few"], device)
    expected = run(packed.batch, **method.keywords, **packed.keywords)
    loss, stats = op(**packed.batch, **method.keywords, **packed.keywords)
    assert not loss.requires_grad
    assert_same_bits(Result(loss, expected.grad, stats), expected)


def test_the_gradient_of_a_shared_cu_seqlens_is_right_after_it_changes(device):
    """The backward pass reads cu_seqlens again: a change in place in between is an error, not another gradient."""
    packed = Packed(DEFAULT_METHODS["maspo"], LENGTHS["a few"], device)
    log_prob = packed.batch["log_prob"].clone().requires_grad_()
    loss, _ = op(**{**packed.batch, "log_prob": log_prob}, **packed.keywords)
    packed.cu_seqlens[1] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("lengths", [[20000, 0, 17, 4097], [7, 0, 5] * 1000], ids=["long", "short"])
@every_mode
def test_same_bits_for_every_number_of_threads(method, lengths):
    packed = Packed(method, lengths, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packed.assert_same(**method.keywords)
    finally:
        torch.set_num_threads(before)
