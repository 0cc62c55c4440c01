"""Real updates of stock verl's FSDP2 engine with the op, against one plain-torch pass over the whole batch."""

import itertools
from pathlib import Path

import pytest
import torch

from maspo_ext import stat_names
from maspo_ext.integrations.verl.ratio_modes import FUSED

from .plain_update import assert_same_gradients, make_model
from .ranks import run_ranks

SCRIPT = Path(__file__).with_name("fsdp_update.py")
AGG = "actor_rollout_ref.actor.loss_agg_mode"
BOUNDS = ("actor/bapo_clip_low", "actor/bapo_clip_high")
MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
# ranks, overrides: the gradient must not depend on how the batch is cut into ranks and micro-batches.
CASES = {
    "1_rank_2_micro_batches": (1, [f"{AGG}=token-mean", f"{MICRO}=2"]),
    "2_ranks_2_micro_batches": (2, [f"{AGG}=seq-mean-token-mean", f"{MICRO}=1"]),
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_model")
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CASES)
def results(request, tiny_model, tmp_path_factory):
    """By ratio_mode, what verl's engine and plain torch computed."""
    ranks, overrides = CASES[request.param]
    result_path = tmp_path_factory.mktemp("update") / "result.pt"
    run_ranks(ranks, SCRIPT, tiny_model, result_path, *overrides)
    return torch.load(result_path, weights_only=False)


def by_rank(result, name):
    """A metric of each rank, per micro-batch."""
    return [metric.values for metric in result["metrics"][name]]


@pytest.mark.slow
@pytest.mark.parametrize("ratio_mode", FUSED)
def test_fsdp2_update_equals_plain_torch(ratio_mode, results):
    result = results[ratio_mode]
    assert result["metrics"]["loss"] == pytest.approx(result["reference_loss"], rel=1e-5)
    assert_same_gradients(result["gradients"], result["reference_gradients"])
    assert result["moved"] > 0
    assert {name for name in stat_names(ratio_mode) if name is not None} <= result["metrics"].keys()


@pytest.mark.slow
def test_no_two_modes_make_the_same_update(results):
    """So that the wrong mode would not have passed."""
    gradients = {ratio_mode: result["reference_gradients"] for ratio_mode, result in results.items()}
    for one, other in itertools.combinations(FUSED, 2):
        same = [torch.allclose(gradients[one][name], gradients[other][name], rtol=1e-2) for name in gradients[one]]
        assert not all(same), f"{one} and {other}"


@pytest.mark.slow
def test_the_entropy_shaped_the_advantages(results):
    assert min(v for values in by_rank(results["entropy_adv"], "actor/entropy_adv_bonus") for v in values) > 0


@pytest.mark.slow
def test_bapo_searches_the_micro_batch_of_all_ranks(results):
    result = results["bapo"]
    found = [list(bounds) for bounds in zip(*(by_rank(result, name) for name in BOUNDS), strict=True)]
    assert all(bounds == result["bounds"] for bounds in found)
    if len(found) > 1:
        assert all(bounds != result["bounds"] for bounds in result["bounds_alone"])
