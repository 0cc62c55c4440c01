"""BAPO's search: the bounds that it ends at, its sums over ranks, its published settings."""

from pathlib import Path

import pytest
import torch

import maspo_ext

from ..ranks import run_ranks
from .cases import GLOBAL_COUNTS, Method, assert_same_bits, op, random_batch, reference, run

ops = torch.ops.maspo
BapoConfig = maspo_ext.BapoConfig
BOUNDS = slice(3, 6)  # actor/bapo_clip_low, actor/bapo_clip_high, actor/bapo_pos_neg_ratio
TENSORS = ("log_prob", "old_log_prob", "advantages", "response_mask")


def search(batch, config):
    """The reference's search, step by step over all tokens, in its own words: ``(low, high, quotient)``."""
    mask = batch["response_mask"].double()
    ratio = (batch["log_prob"].double() - batch["old_log_prob"].double()).clamp(-20, 20).exp()
    adv = batch["advantages"].double()
    low = 1 - config.clip_ratio_low if config.ratio_lower_start is None else config.ratio_lower_start
    high = 1 + config.clip_ratio_high if config.ratio_upper_start is None else config.ratio_upper_start
    low_max = low if config.ratio_lower_max is None else config.ratio_lower_max
    high_max = high if config.ratio_upper_max is None else config.ratio_upper_max

    def quotient():
        positive = float((mask * adv * ratio.clamp(max=high))[adv >= 0].sum())
        negative = float((mask * -adv * ratio.clamp(min=low))[adv < 0].sum())
        return float("inf") if negative <= 0 else positive / (negative + config.eps)

    for raises_upper in (True, False) if config.upper_first else (False, True):
        if raises_upper:
            while quotient() < config.adv_ratio_target and high < high_max and config.ratio_upper_step > 0:
                high = min(high + config.ratio_upper_step, high_max)
        else:
            while quotient() < config.adv_ratio_target and low < low_max and config.ratio_lower_step > 0:
                low = min(low + config.ratio_lower_step, low_max)
    return low, high, quotient()


def found(batch, config, function=op, **keywords):
    return tuple(function(**batch, **config.op_keywords("bapo"), **keywords)[1][BOUNDS].tolist())


def assert_found(batch, config, expected=None):
    """The op, its twin and the search above end at the same bounds, in every bit."""
    low, high, quotient = search(batch, config)
    for function in (op, reference):
        result = found(batch, config, function)
        assert result[:2] == (low, high)
        assert result[2] == pytest.approx(quotient, rel=1e-5 if batch["log_prob"].dtype == torch.float32 else 1e-12)
    if expected is not None:
        assert (low, high) == expected
    return low, high, quotient


@pytest.mark.parametrize("upper_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_bounds_of_random_batches(dtype, upper_first, device):
    """Targets, steps and starts at random; all ways to end are among them."""
    generator = torch.Generator().manual_seed(3)

    def uniform(low, high):
        return low + (high - low) * float(torch.rand((), generator=generator))

    ends = set()
    for seed in range(60):
        batch = random_batch(6, 50, dtype=dtype, device=device, seed=seed, weights=False)
        batch["advantages"] += uniform(-0.5, 1.5)
        lower, upper = uniform(0.3, 0.8), uniform(1.0, 1.4)
        config = BapoConfig(
            adv_ratio_target=uniform(0.3, 3.0),
            ratio_lower_start=lower,
            ratio_lower_max=uniform(lower, 1.0),
            ratio_lower_step=uniform(0.01, 0.2),
            ratio_upper_start=upper,
            ratio_upper_max=uniform(upper, 4.0),
            ratio_upper_step=uniform(0.05, 0.4),
            upper_first=upper_first,
        )
        low, high, _ = assert_found(batch, config)
        ends.add((low > lower, "start" if high == upper else "max" if high == config.ratio_upper_max else "between"))
    between = (not upper_first, "between")  # the lower bound moves only where it comes first, or nothing helps
    assert {(False, "start"), between, (True, "max")} <= ends


def batch_of(tokens, device="cpu"):
    """One row of ``(ratio, advantage)``."""
    ratio, advantages = torch.tensor(tokens, dtype=torch.float64, device=device).T.unsqueeze(1)
    zeros = torch.zeros_like(ratio)
    return {"log_prob": ratio.log(), "old_log_prob": zeros, "advantages": advantages, "response_mask": zeros + 1}


# tokens, hyper-parameters, (low, high), quotient
ENDS = {
    "met at the start": ([(1.0, 2.0), (1.0, -1.0)], {}, (0.6, 1.2), 2.0),
    "met exactly": ([(1.0, 1.0), (1.0, -1.0)], {"eps": 0.0}, (0.6, 1.2), 1.0),
    "half-way": ([(4.0, 1.0), (1.0, -1.5)], {"eps": 0.0, "ratio_upper_step": 0.25}, (0.8, 1.7), 1.7 / 1.5),
    "half-way, upper first": (
        [(4.0, 1.0), (1.0, -1.5)],
        {"eps": 0.0, "ratio_upper_step": 0.25, "upper_first": True},
        (0.6, 1.7),
        1.7 / 1.5,
    ),
    "saturated": ([(4.0, 1.0), (1.0, -3.0)], {"eps": 0.0}, (0.8, 2.0), 2 / 3),
    "saturated, upper first": ([(4.0, 1.0), (1.0, -3.0)], {"eps": 0.0, "upper_first": True}, (0.8, 2.0), 2 / 3),
    "no negatives": ([(4.0, 1.0), (0.1, 0.0)], {"adv_ratio_target": 1e9}, (0.6, 1.2), torch.inf),
    "no positives": ([(4.0, -1.0), (0.1, 0.0)], {}, (0.8, 2.0), 0.0),
    "no positives, target 0": ([(4.0, -1.0), (0.1, 0.0)], {"adv_ratio_target": 0.0}, (0.6, 1.2), 0.0),
    "only zeros": ([(4.0, 0.0)], {}, (0.6, 1.2), torch.inf),
    "no dual clip in the search": ([(1.0, 10.0), (50.0, -1.0)], {}, (0.8, 2.0), 0.2),
    "beyond the clamp": (
        [(1.0, 1.0), (float(torch.e) ** 30, -1e-9)],
        {"eps": 0.0},
        (0.6, 1.2),
        1e9 / float(torch.e) ** 20,
    ),
    "steps off": ([(4.0, 1.0), (1.0, -3.0)], {"ratio_lower_step": 0.0, "ratio_upper_step": 0.0}, (0.6, 1.2), 0.4),
    "starts from the clip": (
        [(4.0, 1.0), (1.0, -3.0)],
        {"ratio_lower_start": None, "ratio_upper_start": None, "ratio_lower_max": None, "ratio_upper_max": None},
        (0.8, 1.2),
        0.4,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_by_hand(end, device):
    tokens, hyper, bounds, quotient = ENDS[end]
    config = BapoConfig(**hyper)
    result = assert_found(batch_of(tokens, device), config)
    assert result[:2] == pytest.approx(bounds, rel=1e-15) and result[2] == pytest.approx(quotient, rel=1e-7)


def test_bounds_keep_the_bits_of_the_accumulated_steps(device):
    """1.2 + 14 * 0.05 is 1.9; added up it is 1.9000000000000006, as in the reference."""
    config = BapoConfig(ratio_upper_max=3.0, eps=0.0, ratio_lower_max=None)
    batch = batch_of([(4.0, 1.0), (1.0, -1.88)], device)
    assert_found(batch, config, (0.6, 1.9000000000000006))
    assert config.upper_bounds()[14] == 1.9000000000000006 and config.upper_bounds()[-1] == 3.0


def test_a_nan_ends_the_search_where_it_is(device):
    batch = batch_of([(4.0, 1.0), (1.0, -3.0), (1.0, 1.0)], device)
    batch["advantages"][0, 2] = torch.nan
    low, high, quotient = found(batch, BapoConfig())
    assert (low, high) == (0.6, 1.2) and quotient != quotient
    assert op(**batch, ratio_mode="bapo")[0].isnan()
    batch["response_mask"][0, 2] = 0
    assert found(batch, BapoConfig())[:2] == (0.8, 2.0)


def test_the_search_sees_the_mask_and_the_shaped_advantages_but_no_weights(device):
    config = BapoConfig(ratio_upper_max=4.0)
    batch = random_batch(6, 50, device=device, entropy=True, mask_dtype=torch.float64)
    batch["response_mask"] *= torch.linspace(0.2, 3.0, 50, device=device)
    batch["advantages"] += 0.3
    weightless = {name: value for name, value in batch.items() if name not in ("rollout_is_weights", "entropy")}
    assert found({**weightless, "rollout_is_weights": batch["rollout_is_weights"]}, config) == found(weightless, config)
    assert_found(weightless, config)
    shaped = batch["advantages"] + torch.minimum(2.0 * batch["entropy"], batch["advantages"].abs())
    keywords = {"entropy_alpha": 2.0, "entropy_kappa": 1.0}
    result = found(batch, config, **keywords)
    assert result == found({**weightless, "advantages": shaped}, config) != found(weightless, config)
    assert result == pytest.approx(found(batch, config, reference, **keywords), rel=1e-12)


# Sums


def sums_of(batch, config):
    return ops.bapo_sums(*(batch[name] for name in TENSORS), **config.candidates)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (4, 512), (2, 9000), (700, 9)], ids=str)
def test_sums_at_all_candidates(shape, dtype, rtol, device):
    batch = random_batch(*shape, dtype=dtype, device=device, spread=1.0)
    config = BapoConfig.published("paper")
    ratio = (batch["log_prob"].double() - batch["old_log_prob"].double()).exp()
    weighted = batch["advantages"].double() * batch["response_mask"]
    expected = [float((-weighted * ratio.clamp(min=low))[weighted < 0].sum()) for low in config.lower_bounds()]
    expected += [float((weighted * ratio.clamp(max=high))[weighted > 0].sum()) for high in config.upper_bounds()]
    sums = sums_of(batch, config)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums.cpu(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


def test_sums_of_halves_add_up(device):
    batch = random_batch(8, 600, device=device)
    config = BapoConfig()
    halves = [
        sums_of({name: value[part] for name, value in batch.items()}, config) for part in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(halves[0] + halves[1], sums_of(batch, config), rtol=1e-13, atol=0)


def halves_that_differ(device="cpu"):
    """Rows of mostly good answers on one rank and of mostly bad ones on the other."""
    batch = random_batch(8, 50, device=device, weights=False)
    batch["response_mask"][0] = True
    batch["advantages"] = batch["advantages"] + torch.tensor([2.0] * 4 + [-1.1] * 4, device=device).unsqueeze(1)
    return batch, [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]


class Work:
    """As of a collective with ``async_op=True``: nothing is added before it has been waited for."""

    def __init__(self, sums, others):
        self.sums, self.others = sums, others

    def wait(self):
        self.sums += self.others


HALVES_CONFIG = {"adv_ratio_target": 1.5, "ratio_upper_max": 6.0, "ratio_upper_step": 0.1}


@pytest.mark.parametrize("how", ["in place", "returned", "a work"])
def test_reduced_sums_give_the_bounds_of_the_whole_batch(how, device):
    config = BapoConfig(**HALVES_CONFIG)
    batch, halves = halves_that_differ(device)
    whole = found(batch, config)
    assert config.ratio_upper_start < whole[1] < config.ratio_upper_max
    of_halves = [sums_of(half, config) for half in halves]
    counts = {"dp_size": 2, "batch_num_tokens": int(batch["response_mask"].sum())}
    gradients = []
    for rank, half in enumerate(halves):
        assert found(half, config)[:2] != whole[:2]

        def all_reduce(sums, rank=rank):
            assert not sums.requires_grad and torch.equal(sums, of_halves[rank])
            if how == "returned":
                return sums + of_halves[1 - rank]
            if how == "a work":
                return Work(sums, of_halves[1 - rank])
            sums += of_halves[1 - rank]
            return None

        def front(all_reduce=all_reduce, **arguments):
            output = maspo_ext.policy_loss(
                **arguments, ratio_mode="bapo", config=config, all_reduce_sums=all_reduce, **counts
            )
            return output.loss, output.stats.tensor

        result = run(half, front)
        assert tuple(result.stats[BOUNDS].tolist())[:2] == whole[:2]
        assert float(result.stats[5]) == pytest.approx(whole[2], rel=1e-13)
        given = {"bapo_sums": of_halves[0] + of_halves[1], **config.op_keywords("bapo"), **counts}
        assert_same_bits(run(half, **given), result)
        gradients.append(result.grad / 2)  # as a trainer averages over ranks
    torch.testing.assert_close(torch.cat(gradients), run(batch, **config.op_keywords("bapo")).grad, rtol=1e-13, atol=0)


def test_several_ranks_without_sums_are_refused(device):
    batch = random_batch(4, 6, device=device)
    with pytest.raises(
        ValueError, match="bapo_sums: expected the sums over all 2 data-parallel ranks, .* Add torch.ops.maspo.bapo_sums"
    ):
        op(**batch, ratio_mode="bapo", **GLOBAL_COUNTS)
    for call in (
        lambda: maspo_ext.policy_loss(**batch, ratio_mode="bapo", **GLOBAL_COUNTS),
        lambda: maspo_ext.PolicyLoss("bapo")(**batch, **GLOBAL_COUNTS),
    ):
        with pytest.raises(ValueError, match="all_reduce_sums: expected a function .* over all 2 data-parallel ranks, .* Pass torch"):
            call()


# Two processes with gloo. Each prints the bounds it finds alone and with the other, and whether its gradient is that of
# the whole batch.
RANK = """
import sys, torch, torch.distributed as dist, maspo_ext
rank, store, data = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
halves, hyper, counts = torch.load(data)
half = halves[rank]
alone = maspo_ext.policy_loss(**half, ratio_mode="bapo", **hyper).stats.to_dict()
log_prob = half["log_prob"].requires_grad_()
loss, stats = maspo_ext.policy_loss(**half, ratio_mode="bapo", **hyper, **counts, all_reduce_sums=dist.all_reduce)
loss.backward()
torch.save((alone, stats.to_dict(), log_prob.grad), f"{data}.{rank}")
dist.destroy_process_group()
"""


def test_two_ranks_find_the_bounds_of_the_whole_batch(tmp_path: Path):
    batch, halves = halves_that_differ()
    data = tmp_path / "data.pt"
    counts = {"dp_size": 2, "batch_num_tokens": int(batch["response_mask"].sum())}
    torch.save((halves, HALVES_CONFIG, counts), data)
    run_ranks([["-c", RANK, rank, tmp_path / "store", data] for rank in range(2)])
    whole = run(batch, **BapoConfig(**HALVES_CONFIG).op_keywords("bapo"))
    low, high, _ = whole.stats[BOUNDS].tolist()
    alone, together, gradients = zip(*(torch.load(f"{data}.{rank}") for rank in range(2)), strict=True)
    names = ("actor/bapo_clip_low", "actor/bapo_clip_high")
    assert [tuple(stats[name] for name in names) for stats in together] == [(low, high)] * 2
    of_each = [tuple(stats[name] for name in names) for stats in alone]
    assert of_each[0] != of_each[1] and (low, high) not in of_each
    torch.testing.assert_close(torch.cat(gradients) / 2, whole.grad, rtol=1e-13, atol=0)


# Settings

PUBLISHED = {
    # target, lower from, to, by, upper from, to, by, upper first
    "yaml": (1.0, 0.6, 0.8, 0.05, 1.2, 2.0, 0.05, False),
    "script": (0.5, 0.8, 0.95, 0.05, 1.2, 2.0, 0.1, False),
    "readme": (0.5, 0.6, 0.9, 0.05, 1.2, 3.0, 0.05, False),
    "paper": (0.4 / 0.6, 0.6, 0.9, 0.02, 1.2, 3.0, 0.05, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name, device):
    config = BapoConfig.published(name)
    values = ("adv_ratio_target", "ratio_lower_start", "ratio_lower_max", "ratio_lower_step")
    values += ("ratio_upper_start", "ratio_upper_max", "ratio_upper_step", "upper_first")
    assert tuple(getattr(config, value) for value in values) == PUBLISHED[name]
    assert (config.eps, config.clip_ratio_c) == (1e-8, 3.0)
    assert BapoConfig.published(name, eps=0.5) == Method("bapo", config).with_(eps=0.5).config
    for shift in (-1.0, 0.0, 0.7, 3.0):
        batch = random_batch(6, 50, device=device, weights=False)
        batch["advantages"] += shift
        assert_found(batch, config)


def test_published_defaults_and_unknown_names():
    assert BapoConfig.published("yaml") == BapoConfig()
    with pytest.raises(
        ValueError, match="BapoConfig.published: expected one of yaml, script, readme, paper, got 'README'. Did you mean readme"
    ):
        BapoConfig.published("README")


def test_as_many_candidates_as_there_may_be(device):
    config = BapoConfig(ratio_lower_max=None, ratio_upper_max=1.2 + 126 / 64, ratio_upper_step=1 / 64)
    assert len(config.lower_bounds()) + len(config.upper_bounds()) == 128
    batch = batch_of([(9.0, 1.0), (1.0, -2.5)], device)
    assert_found(batch, config)
    with pytest.raises(ValueError, match="at most 128 bounds to try.*got about 1 lower ones and about 128 upper ones"):
        BapoConfig(ratio_lower_max=None, ratio_upper_max=1.2 + 127 / 64, ratio_upper_step=1 / 64)
