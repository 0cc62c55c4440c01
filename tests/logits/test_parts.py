"""Rows whose words come in parts are the rows of all words at once."""

import pytest
import torch

from maspo_ext.logits.parts import PartsInTurn, Rows, Sums

from .cases import ARITHMETIC, FLOAT_DTYPES, IGNORED, assert_close, random_rows

WORDS, TEMPERATURE = 700, 0.7
# Where a part ends.
CUTS = {"two": [400, 700], "of one word": [1, 2, 699, 700], "many": list(range(35, 701, 35))}
every_cut = pytest.mark.parametrize("cut", CUTS)


def logprob(logits, target, first_word=0):
    return Rows(*torch.ops.maspo.logprob_forward(logits, target, TEMPERATURE, IGNORED, first_word, WORDS))


def parts_of(logits, target, cut):
    firsts = [0, *CUTS[cut][:-1]]
    for first, last in zip(firsts, CUTS[cut], strict=True):
        yield logprob(logits[:, first:last].contiguous(), target, first), first, last - first


def in_turn(logits, target, cut):
    parts = PartsInTurn(target, TEMPERATURE, IGNORED)
    for part in parts_of(logits, target, cut):
        parts.add(*part)
    return parts.rows()


def at_once(logits, target, cut):
    """As the ranks of a group add up."""
    found = list(parts_of(logits, target, cut))
    largest = torch.stack([part.largest for part, *_ in found]).amax(0)
    sums = [
        torch.stack(Sums.of_part(part, largest, TEMPERATURE, (target >= first) & (target < first + words)))
        for part, first, words in found
    ]
    dtype = ARITHMETIC[logits.dtype]
    return Sums(*torch.stack(sums).sum(0)).rows(largest, TEMPERATURE, target == IGNORED, dtype)


every_way = pytest.mark.parametrize("added_up", [in_turn, at_once])


def confident(rows, dtype, device):
    """Half of the rows random, half sure of their target."""
    logits, target = random_rows(rows, WORDS, dtype, device)
    logits = logits.nan_to_num(nan=0.0, neginf=0.0)
    logits[: rows // 2].scatter_add_(1, target[: rows // 2, None], torch.full((rows, 1), 12.0).to(logits))
    return logits, target


@every_way
@every_cut
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_rows(dtype, cut, added_up, device):
    logits, target = confident(64, dtype, device)
    target[::5] = IGNORED
    expected, actual = logprob(logits, target), added_up(logits, target, cut)
    valid = target != IGNORED
    assert [value.dtype for value in actual] == [value.dtype for value in expected]
    assert not any(actual[i][~valid].any() for i in (0, 1))
    eps = 1e-14 if dtype == torch.float64 else 1.2e-7
    for got, of_whole in zip(actual[:2], expected[:2], strict=True):
        error = (got[valid].double() - of_whole[valid].double()).abs()
        assert (error <= 2 * eps * of_whole[valid].double().abs().clamp(min=1)).all()
    assert_close([actual.state[valid]], [expected.state[valid]], 1e-7 if dtype != torch.float64 else 1e-13)
    assert torch.equal(actual.largest[valid], expected.largest[valid])


@every_way
@every_cut
def test_banned_words(cut, added_up, device):
    """Whole parts of them, the target's among these, and the first part."""
    logits, target = confident(6, torch.float64, device)
    logits[0, :400] = -torch.inf
    logits[1, 400:] = -torch.inf
    logits[2, :] = -torch.inf
    logits[2, 17] = 3.0
    target[:3] = torch.tensor([5, 3, 17])
    logits[3, target[3]] = -torch.inf
    logits[4, :] = -torch.inf  # nothing left
    expected, actual = logprob(logits, target), added_up(logits, target, cut)
    assert expected.log_prob[0] == expected.log_prob[3] == -torch.inf and expected.log_prob[2] == 0
    torch.testing.assert_close(actual.log_prob, expected.log_prob, rtol=1e-12, atol=1e-13, equal_nan=True)
    torch.testing.assert_close(actual.entropy, expected.entropy, rtol=1e-12, atol=1e-13, equal_nan=True)


@every_way
@every_cut
def test_nan(cut, added_up, device):
    logits, target = confident(4, torch.float32, device)
    logits[1, 650], logits[2, 0] = torch.nan, torch.inf
    actual = added_up(logits, target, cut)
    for value in actual[:2]:
        assert value.isnan().tolist() == [False, True, True, False]
