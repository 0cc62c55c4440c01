"""Updates by the workers that verl 0.7 has by default, against plain torch. Run by test_releases.py beside those releases.

Not named test_*: the verl of the environment has none of these workers. They hand a loss no counts: each micro-batch is
aggregated on its own, and their mean is taken.
"""

import copy

import pytest
import torch
from hydra import compose, initialize_config_module
from verl import DataProto
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils import ulysses
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.actor.dp_actor import DataParallelPPOActor

from maspo_ext import RATIO_MODES, stat_names
from maspo_ext.integrations.verl.ratio_modes import FUSED

from .hyper import HYPER, overrides_of
from .plain_update import ROWS, assert_same_gradients, log_probs_of, make_batch, make_model, reference_update

ACTOR = "actor_rollout_ref.actor"
PARTS = [[0, 1], [2, 3]]
OVERRIDES = [
    f"{ACTOR}.ppo_mini_batch_size={ROWS}",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu={len(PARTS[0])}",
    f"{ACTOR}.grad_clip=1e9",
    f"{ACTOR}.use_torch_compile=False",
    f"++{ACTOR}.fsdp_config.dtype=float32",
    "actor_rollout_ref.model.use_remove_padding=False",
]
# The actor takes no entropy from a model's output, as entropy_adv does.
MODES = [ratio_mode for ratio_mode in FUSED if ratio_mode != "entropy_adv"]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def model():
    return make_model()


def actor_config(ratio_mode, *overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [*OVERRIDES, *overrides_of(ratio_mode), *overrides])
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def update(model, config, batch):
    """Metrics and gradients of the second of two mini-batches, which are the same: with one the old policy is not looked at."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    gradients = {}
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    data = DataProto.from_single_dict(batch, meta_info={"temperature": 1.0})
    metrics = DataParallelPPOActor(config, model, optimizer).update_policy(DataProto.concat([data, data]))
    return {name: value[-len(PARTS) :] for name, value in metrics.items() if isinstance(value, list)}, gradients


def plain_update(model, batch, ratio_mode, loss_agg_mode):
    _, gradients, stats = reference_update(model, batch, ratio_mode, HYPER[ratio_mode], loss_agg_mode, PARTS)
    return {name: gradient / len(PARTS) for name, gradient in gradients.items()}, stats


@pytest.mark.parametrize("ratio_mode", MODES)
@pytest.mark.parametrize("loss_agg_mode", ["token-mean", "seq-mean-token-sum-norm"])
def test_update_equals_plain_torch(model, ratio_mode, loss_agg_mode):
    batch = make_batch()
    metrics, gradients = update(model, actor_config(ratio_mode, f"{ACTOR}.loss_agg_mode={loss_agg_mode}"), batch)
    default = RATIO_MODES[ratio_mode].default_loss_agg_mode
    expected, stats = plain_update(model, batch, ratio_mode, default if loss_agg_mode == "token-mean" else loss_agg_mode)
    assert_same_gradients(gradients, expected)
    for name in filter(None, stat_names(ratio_mode)):
        assert metrics[name] == pytest.approx([part[name] for part in stats], rel=1e-4, abs=1e-6), name


def test_entropy_bonus_is_subtracted_from_the_loss_in_place(model):
    batch = make_batch()
    _, gradients = update(model, actor_config("maspo", f"{ACTOR}.entropy_coeff=0.5"), batch)
    expected, _ = plain_update(model, batch, "maspo", "token-mean")
    log_probs, mask = log_probs_of(model, batch), batch["response_mask"]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    means = [(entropy[rows] * mask[rows]).sum() / mask[rows].sum() for rows in PARTS]
    of_bonus = torch.autograd.grad(0.5 * torch.stack(means).mean(), list(model.parameters()))
    assert_same_gradients(gradients, {name: g - b for (name, g), b in zip(expected.items(), of_bonus, strict=True)})


def test_fused_kernels(model, monkeypatch):
    batch = make_batch()
    _, expected = update(model, actor_config("maspo"), batch)
    fused = copy.deepcopy(model)
    apply_monkey_patch(fused, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend="maspo")
    config = actor_config("maspo")
    object.__setattr__(config, "use_fused_kernels", True)  # the worker takes it over from the model's config
    assert_same_gradients(update(fused, config, batch)[1], expected)
    # Over several ranks the model's forward would take a wrong word as the next one, at the end of each rank's part.
    monkeypatch.setattr(ulysses, "get_ulysses_sequence_parallel_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"expected ulysses_sequence_parallel_size=1.*got '?2.*verl to 0\.8 or later"):
        update(fused, config, batch)


def test_entropy_is_refused(model):
    with pytest.raises(ValueError, match="expected the one in the model's output.*use_legacy_worker_impl=disable"):
        update(model, actor_config("entropy_adv", f"{ACTOR}.calculate_entropy=True"), make_batch())


def test_bapo_of_several_ranks_is_refused(model, monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    with pytest.raises(ValueError, match=r"dp_group: expected verl's group.*of 2\. Train.*use_legacy_worker_impl=disable"):
        update(model, actor_config("bapo"), make_batch())
