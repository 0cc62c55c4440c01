"""A vocabulary on two gloo ranks: results and gradients are those of one rank with all of it."""

from pathlib import Path

import pytest
import torch

import maspo_ext

from ..ranks import run_ranks
from .two_ranks import EQUAL, SHARDS, TEMPERATURE, gradients, inputs, logits_of

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By rank, what it computed."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks([[SCRIPT, rank, folder / "store", folder / "result"] for rank in range(2)])
    return [torch.load(f"{folder / 'result'}.{rank}") for rank in range(2)]


# A shard's matrix product adds up in another order: a logit of 100, of 17 products, moves by 2e-5, and a probability by as
# much of itself.
TOLERANCE = {torch.float64: (1e-12, 1e-13), torch.float32: (5e-5, 2e-5), torch.bfloat16: (1e-2, 1e-2)}
every_case = pytest.mark.parametrize(
    "dtype, shards", [(dtype, name) for dtype in TOLERANCE for name in ("named", "equal")], ids=str
)


def assert_close(got, expected, dtype):
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol * max(1.0, expected.abs().max().item()))


def words_of(shards):
    return SHARDS if shards == "named" else EQUAL


def assert_close_results(got, expected, dtype):
    """They have float32's digits, whatever the logits have."""
    for one in zip(got, expected, strict=True):
        assert_close(*one, torch.promote_types(dtype, torch.float32))


@every_case
def test_logits(dtype, shards, found):
    cuts = words_of(shards)
    given = inputs(dtype, cuts[-1][1])
    logits = logits_of(given).requires_grad_()
    results = maspo_ext.logprob(logits, given["target"], TEMPERATURE)
    (grad,) = gradients(results, given["upstream"], (logits,))
    for rank, (first, last) in enumerate(cuts):
        log_prob, entropy, of_shard = found[rank][dtype, shards, "logprob"]
        assert_close_results((log_prob, entropy), results, dtype)
        assert_close(of_shard, grad[:, first:last], dtype)
        assert (log_prob <= 0).all() and (entropy >= 0).all()


@every_case
def test_hidden_states(dtype, shards, found):
    cuts = words_of(shards)
    given = inputs(dtype, cuts[-1][1])
    wanted = [given[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    hidden, weight, bias = wanted
    results = maspo_ext.linear_logprob(hidden, weight, given["target"], TEMPERATURE, bias)
    grads = gradients(results, given["upstream"], wanted)
    for rank, (first, last) in enumerate(cuts):
        log_prob, entropy, *of_shard = found[rank][dtype, shards, "linear"]
        assert_close_results((log_prob, entropy), results, dtype)
        for got, expected in zip(of_shard, (grads[0], grads[1][first:last], grads[2][first:last]), strict=True):
            assert_close(got, expected, dtype)


def test_both_ranks_have_the_same_results(found):
    for key, (log_prob, entropy, *_) in found[0].items():
        if isinstance(key, tuple):
            assert torch.equal(log_prob, found[1][key][0]) and torch.equal(entropy, found[1][key][1])


def test_second_derivative_is_refused_whatever_is_trained(found):
    for of_rank in found:
        for text in of_rank["second"]:
            assert "maspo.linear_logprob has no second derivative" in text


def test_shards_that_are_not_the_whole_are_refused_on_every_rank(found):
    first, *others = found[0]["refused"]
    assert found[1]["refused"] == found[0]["refused"]
    assert first == (
        "maspo_ext: first_word, all_words: expected one number, all_words, on all ranks, got 302 and 300 words. Where shards differ in "
        "size, every rank passes where its own begins."
    )
    for text, got in zip(others, ("302 and 301 words", "301 and 302 words"), strict=True):
        assert f"got {got}. Where shards differ" in text


def test_without_ranks_it_is_refused():
    with pytest.raises(RuntimeError, match="group: expected an initialised torch.distributed, got none. Without ranks use"):
        maspo_ext.vocab_parallel_logprob(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
