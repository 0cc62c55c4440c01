"""The loss in verl's registry: verl's own for ppo, the op with everything verl knows for maspo."""

from types import SimpleNamespace

import pytest
import torch
import verl  # noqa: F401  loads the plugin
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from maspo_ext import STAT_NAMES, reference
from maspo_ext.integrations.verl import PolicyLossConfig
from maspo_ext.integrations.verl.registration import register_losses

AGG_MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
HYPER = {
    "maspo_sigma_base": 1.5,
    "maspo_alpha": 0.5,
    "maspo_sigma_high": 4.0,
    "maspo_adv_low": 0.9,
    "maspo_adv_high": 1.1,
    "maspo_beta_pos": 0.3,
    "maspo_beta_neg": 0.2,
}
GLOBAL = {"dp_size": 2, "batch_num_tokens": 57, "global_batch_size": 11, "loss_scale_factor": 40}
ROWS, WIDTH = 6, 9


def actor(policy_loss=None, global_batch_info=None, **settings):
    policy_loss = policy_loss or PolicyLossConfig()
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, **settings
    )
    config.global_batch_info.update(global_batch_info or {})
    return config


def maspo_actor(**settings):
    return actor(PolicyLossConfig(ratio_clip={"ratio_mode": "maspo"} | HYPER), **settings)


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(ROWS, WIDTH, generator=draw)
    lengths = torch.tensor([9, 1, 4, 0, 7, 5])
    return {
        "old_log_prob": old,
        "log_prob": (old + 0.7 * torch.randn(ROWS, WIDTH, generator=draw)).requires_grad_(),
        "advantages": torch.randn(ROWS, 1, generator=draw).expand(ROWS, WIDTH).contiguous(),
        "response_mask": torch.arange(WIDTH) < lengths[:, None],
        "rollout_is_weights": 0.5 + torch.rand(ROWS, WIDTH, generator=draw),
    }


def verl_loss(config, batch, **changes):
    """What verl's ppo_loss does: look the function up by the config's loss_mode, call it by these keywords."""
    function = core_algos.get_policy_loss_fn(config.policy_loss.get("loss_mode", "vanilla"))
    loss, metrics = function(loss_agg_mode=config.loss_agg_mode, config=config, **(batch | changes))
    (gradient,) = torch.autograd.grad(loss, (batch | changes)["log_prob"])
    return loss, gradient, metrics


def reference_loss(config, batch):
    loss, stats = reference.maspo_loss(
        **batch,
        **{key.removeprefix("maspo_"): value for key, value in HYPER.items()},
        loss_agg_mode=config.loss_agg_mode,
        clip_ratio_low=config.clip_ratio_low,
        clip_ratio_high=config.clip_ratio_high,
        clip_ratio_c=config.clip_ratio_c,
        **config.global_batch_info,
    )
    (gradient,) = torch.autograd.grad(loss, batch["log_prob"])
    return loss, gradient, dict(zip(STAT_NAMES, stats.tolist(), strict=True))


def assert_equal(got, expected):
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("info", [GLOBAL, {}], ids=["global_counts", "local_counts"])
@pytest.mark.parametrize("weighted", [True, False], ids=["is_weights", "no_is_weights"])
def test_everything_verl_knows_reaches_the_op(batch, loss_agg_mode, info, weighted):
    if not weighted:
        batch["rollout_is_weights"] = None
    config = maspo_actor(
        loss_agg_mode=loss_agg_mode, global_batch_info=info, clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5
    )
    got, expected = verl_loss(config, batch), reference_loss(config, batch)
    assert_equal(got, expected)
    assert all(type(value) is float for value in got[2].values())
    assert got[2] == pytest.approx(expected[2], rel=1e-5, abs=1e-7)


def test_clip_statistics_are_those_of_verl(batch):
    vanilla = verl_loss(actor(clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5), batch)[2]
    maspo = verl_loss(maspo_actor(clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5), batch)[2]
    assert min(vanilla["actor/pg_clipfrac"], vanilla["actor/pg_clipfrac_lower"]) > 0
    assert {name: maspo[name] for name in vanilla} == pytest.approx(vanilla, rel=1e-5)


def test_clip_ratio_stands_in_for_missing_bounds(batch):
    symmetric = maspo_actor(clip_ratio=0.4, clip_ratio_low=None, clip_ratio_high=None)
    explicit = maspo_actor(clip_ratio_low=0.4, clip_ratio_high=0.4)
    assert verl_loss(symmetric, batch)[2] == verl_loss(explicit, batch)[2]


def test_wrong_clip_ratio_is_named_by_its_key(batch):
    with pytest.raises(ValueError, match=r"maspo_ext: actor_rollout_ref\.actor\.clip_ratio_c: expected > 1, got 0\.5"):
        verl_loss(maspo_actor(clip_ratio_c=0.5), batch)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_micro_batches_and_ranks_add_up(batch, loss_agg_mode):
    """Ranks are averaged by the trainer, micro-batches summed: the gradient is that of one call on the whole batch."""
    tokens = int(batch["response_mask"].sum())
    counts = {"batch_num_tokens": tokens, "global_batch_size": ROWS, "loss_scale_factor": None}
    whole = verl_loss(maspo_actor(loss_agg_mode=loss_agg_mode, global_batch_info={"dp_size": 1} | counts), batch)
    loss, gradient = torch.zeros(()), torch.zeros_like(batch["log_prob"])
    parts = maspo_actor(loss_agg_mode=loss_agg_mode, global_batch_info={"dp_size": 2} | counts)
    for rank_rows in (slice(0, 3), slice(3, 6)):
        for row in range(rank_rows.start, rank_rows.stop):
            piece = {name: value[row : row + 1].detach() for name, value in batch.items()}
            piece["log_prob"].requires_grad_()
            part = verl_loss(parts, piece)
            loss += part[0].detach() / 2
            gradient[row] += part[1][0] / 2
    torch.testing.assert_close(loss, whole[0].detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-5, atol=1e-8)


def test_loss_may_be_changed_in_place(batch):
    """As verl's ppo_loss does to add its entropy and KL terms."""
    config = maspo_actor()
    loss, _ = core_algos.get_policy_loss_fn("maspo")(config=config, **batch)
    loss -= 0.5 * batch["log_prob"].sum()
    loss += 0.25 * batch["log_prob"].sum()
    loss.backward()
    torch.testing.assert_close(batch["log_prob"].grad, reference_loss(config, batch)[1] - 0.25, rtol=1e-5, atol=1e-7)


def test_loss_mode_alone_has_the_published_defaults(batch):
    ours, stock = PolicyLossConfig(loss_mode="maspo"), verl.workers.config.PolicyLossConfig(loss_mode="maspo")
    expected, _ = reference.maspo_loss(**batch)
    for policy_loss in (ours, stock):
        torch.testing.assert_close(verl_loss(actor(policy_loss), batch)[0], expected, rtol=1e-5, atol=1e-7)


# ---- verl's own losses


def test_ppo_is_verls_own_function_bit_for_bit(batch):
    assert core_algos.get_policy_loss_fn("vanilla") is core_algos.compute_policy_loss_vanilla
    assert core_algos.compute_policy_loss_vanilla.__module__ == core_algos.__name__
    stock = verl_loss(actor(verl.workers.config.PolicyLossConfig()), batch)
    ours = verl_loss(actor(PolicyLossConfig(ratio_clip={"ratio_mode": "ppo"})), batch)
    assert torch.equal(ours[0], stock[0]) and torch.equal(ours[1], stock[1]) and ours[2] == stock[2]


def test_maspo_is_not_ppo(batch):
    assert not torch.allclose(verl_loss(maspo_actor(), batch)[1], verl_loss(actor(), batch)[1])


def test_only_our_loss_is_added_to_the_registry():
    added = {name for name, f in core_algos.POLICY_LOSS_REGISTRY.items() if not str(f.__module__).startswith("verl")}
    assert added == {"maspo"}


def test_name_taken_in_the_registry():
    with pytest.raises(RuntimeError, match="expected no loss named 'maspo'.*uninstall"):
        register_losses(core_algos)


# ---- places where verl would train its own loss


def test_bypass_mode_never_trains_ppo_for_maspo(batch):
    # Asking for both is refused (test_door_config); here verl itself sets loss_mode, on the config tree.
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.rollout_corr_helper import apply_bypass_mode
    from verl.utils.config import omega_conf_to_dataclass

    tree = OmegaConf.create(
        {
            "_target_": "maspo_ext.integrations.verl.PolicyLossConfig",
            "loss_mode": "vanilla",
            "ratio_clip": {"ratio_mode": "maspo"},
        }
    )
    data = DataProto.from_dict({"rollout_log_probs": batch["old_log_prob"]})
    apply_bypass_mode(data, rollout_corr_config=None, policy_loss_config=tree)
    assert tree.loss_mode == "bypass_mode"
    with pytest.raises(Exception, match="loss_mode: expected vanilla or maspo.*got 'bypass_mode'"):
        omega_conf_to_dataclass(tree)


def test_config_without_policy_loss(batch):
    from verl.workers.config.distillation import DistillationLossConfig

    with pytest.raises(ValueError, match="expected verl's actor config.*got DistillationLossConfig without one"):
        core_algos.get_policy_loss_fn("maspo")(config=DistillationLossConfig(), **batch)


@pytest.mark.parametrize("use_policy_gradient", [True, False])
def test_distillation_by_policy_gradient_is_refused(use_policy_gradient):
    config = maspo_actor()
    from verl.trainer.distillation import losses

    distillation = SimpleNamespace(
        distillation_loss=SimpleNamespace(use_policy_gradient=use_policy_gradient, loss_mode="no such loss")
    )
    expected = "use_policy_gradient: expected False with ratio_mode=maspo" if use_policy_gradient else "no such loss"
    with pytest.raises(ValueError, match=expected):
        losses.distillation_loss(config, distillation, {}, {})
    with pytest.raises(ValueError, match="no such loss"):
        losses.distillation_loss(actor(), distillation, {}, {})
