"""The loss in verl's registry: verl's own for ppo, the op with everything verl knows for the fused modes."""

import pickle
from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl  # noqa: F401  loads the plugin
from tensordict import TensorDict
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.workers.config import ActorConfig
from verl.workers.utils import losses

from maspo_ext import RATIO_MODES, reference, stat_names
from maspo_ext.integrations.verl import PolicyLossConfig
from maspo_ext.integrations.verl.ratio_modes import FUSED, registry_name
from maspo_ext.integrations.verl.registration import register_losses

from .hyper import ACTOR_CLIP, HYPER, SHARED
from .release import AGG_MODES, HAS_BYPASS_MODE, HAS_DISTILLATION, HAS_METRIC, NESTED_DATA, VERLS_AGG_MODES

GLOBAL = {"dp_size": 2, "batch_num_tokens": 57, "global_batch_size": 11, "loss_scale_factor": 40}
LOCAL = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None, "loss_scale_factor": None}
FROM_DATA = ["dp_size", "batch_num_tokens", "global_batch_size"]
ROWS, WIDTH = 6, 9
each_mode = pytest.mark.parametrize("ratio_mode", FUSED)
needs_distillation = pytest.mark.skipif(not HAS_DISTILLATION, reason="this release of verl has no distillation")


def actor(policy_loss=None, global_batch_info=LOCAL, **settings):
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=policy_loss or PolicyLossConfig(),
        loss_scale_factor=global_batch_info["loss_scale_factor"],
        **settings,
    )
    config.global_batch_info.update(global_batch_info)
    return config


def fused_actor(ratio_mode="maspo", keys=None, **settings):
    """The actor config of a mode with its hyper-parameters of ``HYPER``, and with ``keys`` of ``ratio_clip``."""
    hyper = {f"{ratio_mode}_{name}": value for name, value in HYPER[ratio_mode].items()}
    section = {"ratio_mode": ratio_mode} | hyper | (keys or {})
    settings = {"calculate_entropy": ratio_mode == "entropy_adv"} | settings
    return actor(PolicyLossConfig(ratio_clip=section), **settings)


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
        "entropy": (3 * torch.rand(ROWS, WIDTH, generator=draw)).requires_grad_(),
    }


def nested(rows):
    """``[B, T]`` as verl's engines hand it over, with no padding."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def of_model(rows):
    """``[B, T]`` of the responses as the model's output: after prompts of one token, and one position earlier."""
    return nested(torch.cat([rows, torch.zeros(rows.shape[0], 1)], dim=1))


def verl_loss(config, batch, dp_group=None, **changes):
    """Loss, gradient and the loss's own metrics by verl's ``ppo_loss``."""
    batch = batch | changes
    rows = len(batch["log_prob"])
    data = {name: batch[name] for name in ("advantages", "response_mask", "rollout_is_weights")}
    data |= {"old_log_probs": batch["old_log_prob"], "prompts": torch.ones(rows, 1), "responses": batch["old_log_prob"]}
    rows_of = nested if NESTED_DATA else torch.Tensor.contiguous
    data = {name: rows_of(value) for name, value in data.items() if value is not None}
    data = TensorDict(data | {"attention_mask": torch.ones(rows, 1 + WIDTH, dtype=torch.long)}, batch_size=rows)
    tu.assign_non_tensor(data, **{name: config.global_batch_info[name] for name in FROM_DATA})
    model_output = {"log_probs": of_model(batch["log_prob"])}
    if config.calculate_entropy:
        model_output["entropy"] = of_model(batch["entropy"])
    loss, metrics = losses.ppo_loss(config=config, model_output=model_output, data=data, dp_group=dp_group)
    (gradient,) = torch.autograd.grad(loss, batch["log_prob"], retain_graph=True)
    verls = ("actor/pg_loss", "actor/entropy_loss")
    values = {name: metric.values[0] if HAS_METRIC else metric for name, metric in metrics.items()}
    return loss, gradient, {name: value for name, value in values.items() if name not in verls}


def reference_loss(config, batch, ratio_mode="maspo", loss_agg_mode=None, hyper=None, **keywords):
    """The same by ``maspo_ext.reference``, with the hyper-parameters of ``HYPER`` and the mode's of the actor."""
    shared = {name: getattr(config, name) for name in SHARED.get(ratio_mode, ())}
    method = RATIO_MODES[ratio_mode](**(HYPER[ratio_mode] if hyper is None else hyper), **shared)
    if ratio_mode == "entropy_adv":
        keywords["entropy"] = batch["entropy"]
    default = method.default_loss_agg_mode if config.loss_agg_mode == "token-mean" else config.loss_agg_mode
    loss, stats = reference.loss(
        **{name: value for name, value in batch.items() if name != "entropy"},
        **method.op_keywords(ratio_mode),
        loss_agg_mode=loss_agg_mode or default,
        **config.global_batch_info,
        **keywords,
    )
    (gradient,) = torch.autograd.grad(loss, batch["log_prob"])
    names = stat_names(ratio_mode, entropy_adv="entropy" in keywords)
    stats = {name: value for name, value in zip(names, stats.tolist(), strict=True) if name is not None}
    return loss, gradient, stats


def assert_equal(got, expected):
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-7)
    assert got[2] == pytest.approx(expected[2], rel=1e-5, abs=1e-7)


def test_hyper_parameters_differ_from_the_defaults():
    assert set(HYPER) == set(FUSED)
    for ratio_mode in FUSED:
        default = RATIO_MODES[ratio_mode]()
        own = {f.name for f in fields(default)} - {*SHARED.get(ratio_mode, ())}
        assert own == {name for name, value in HYPER[ratio_mode].items() if value != getattr(default, name)}


@each_mode
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("info", [GLOBAL, LOCAL], ids=["global_counts", "local_counts"])
@pytest.mark.parametrize("weighted", [True, False], ids=["is_weights", "no_is_weights"])
def test_everything_verl_knows_reaches_the_op(batch, ratio_mode, loss_agg_mode, info, weighted):
    if not weighted:
        batch["rollout_is_weights"] = None
    if ratio_mode == "bapo":
        info = info | {"dp_size": 1}  # with two ranks in test_fsdp_update
    config = fused_actor(ratio_mode, loss_agg_mode=loss_agg_mode, global_batch_info=info, **ACTOR_CLIP)
    got, expected = verl_loss(config, batch), reference_loss(config, batch, ratio_mode)
    assert_equal(got, expected)
    assert all(type(value) is float for value in got[2].values())


def test_clip_statistics_are_those_of_verl(batch):
    vanilla = verl_loss(actor(**ACTOR_CLIP), batch)[2]
    maspo = verl_loss(fused_actor(**ACTOR_CLIP), batch)[2]
    assert min(vanilla["actor/pg_clipfrac"], vanilla["actor/pg_clipfrac_lower"]) > 0
    assert {name: maspo[name] for name in vanilla} == pytest.approx(vanilla, rel=1e-5)


@pytest.mark.parametrize("ratio_mode", SHARED)
def test_clip_ratio_stands_in_for_missing_bounds(batch, ratio_mode):
    keys = {"bapo_ratio_lower_start": None, "bapo_ratio_upper_start": None} if ratio_mode == "bapo" else {}
    symmetric = fused_actor(ratio_mode, keys, clip_ratio=0.4, clip_ratio_low=None, clip_ratio_high=None)
    explicit = fused_actor(ratio_mode, keys, clip_ratio_low=0.4, clip_ratio_high=0.4)
    assert verl_loss(symmetric, batch)[2] == verl_loss(explicit, batch)[2]


@pytest.mark.parametrize("ratio_mode", SHARED)
def test_wrong_clip_ratio_is_named_by_its_key(ratio_mode):
    with pytest.raises(ValueError, match=r"maspo_ext: actor_rollout_ref\.actor\.clip_ratio_c: expected > 1, got 0\.5"):
        fused_actor(ratio_mode, clip_ratio_c=0.5)


@pytest.mark.parametrize("ratio_mode", [ratio_mode for ratio_mode in FUSED if ratio_mode != "bapo"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
def test_micro_batches_and_ranks_add_up(batch, ratio_mode, loss_agg_mode):
    """Ranks are averaged by the trainer, micro-batches summed: the gradient is that of one call on the whole batch."""
    tokens = int(batch["response_mask"].sum())
    counts = {"batch_num_tokens": tokens, "global_batch_size": ROWS, "loss_scale_factor": None}
    whole = fused_actor(ratio_mode, loss_agg_mode=loss_agg_mode, global_batch_info={"dp_size": 1} | counts)
    parts = fused_actor(ratio_mode, loss_agg_mode=loss_agg_mode, global_batch_info={"dp_size": 2} | counts)
    expected = verl_loss(whole, batch)
    loss, gradient = torch.zeros(()), torch.zeros_like(batch["log_prob"])
    for rank_rows in (slice(0, 3), slice(3, 6)):
        for row in range(rank_rows.start, rank_rows.stop):
            piece = {name: value[row : row + 1].detach() for name, value in batch.items()}
            piece["log_prob"].requires_grad_()
            part = verl_loss(parts, piece)
            loss += part[0].detach() / 2
            gradient[row] += part[1][0] / 2
    torch.testing.assert_close(loss, expected[0].detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-5, atol=1e-8)


def test_loss_may_be_changed_in_place(batch):
    """As verl's ppo_loss does to add its entropy and KL terms."""
    config = fused_actor()
    del batch["entropy"]
    loss, _ = core_algos.get_policy_loss_fn("maspo")(config=config, **batch)
    loss -= 0.5 * batch["log_prob"].sum()
    loss += 0.25 * batch["log_prob"].sum()
    loss.backward()
    torch.testing.assert_close(batch["log_prob"].grad, reference_loss(config, batch)[1] - 0.25, rtol=1e-5, atol=1e-7)


@each_mode
def test_loss_mode_alone_has_the_published_defaults(batch, ratio_mode):
    name = registry_name(ratio_mode)
    settings = {"calculate_entropy": ratio_mode == "entropy_adv"}
    for policy_loss in (PolicyLossConfig(loss_mode=name), verl.workers.config.PolicyLossConfig(loss_mode=name)):
        config = actor(policy_loss, **settings)
        assert_equal(verl_loss(config, batch), reference_loss(config, batch, ratio_mode, hyper={}))


# ---- options


def test_sapo_loss_agg_mode(batch):
    for of_key in AGG_MODES:
        for of_actor in AGG_MODES:
            config = fused_actor("sapo", {"sapo_loss_agg_mode": of_key}, loss_agg_mode=of_actor)
            assert_equal(verl_loss(config, batch), reference_loss(config, batch, "sapo", loss_agg_mode=of_key))


@each_mode
def test_dual_clip(batch, ratio_mode):
    config = fused_actor(ratio_mode, {"dual_clip": True}, **ACTOR_CLIP)
    got = verl_loss(config, batch)
    assert_equal(got, reference_loss(config, batch, ratio_mode, dual_clip=True))
    if not RATIO_MODES[ratio_mode].dual_clip:  # the others do so anyway
        assert not torch.allclose(got[1], verl_loss(fused_actor(ratio_mode, **ACTOR_CLIP), batch)[1])


@each_mode
def test_entropy_adv_before_any_mode(batch, ratio_mode):
    keys = {"entropy_adv": True, "entropy_adv_alpha": 0.3, "entropy_adv_kappa": 4.0}
    config = fused_actor(ratio_mode, keys, calculate_entropy=True)
    hyper, keywords = HYPER[ratio_mode], {"entropy": batch["entropy"]}
    if ratio_mode == "entropy_adv":  # the two are its own
        hyper = hyper | {"kappa": 4.0}
    else:
        keywords |= {"entropy_alpha": 0.3, "entropy_kappa": 4.0}
    got = verl_loss(config, batch)
    assert_equal(got, reference_loss(config, batch, ratio_mode, hyper=hyper, **keywords))
    assert got[2]["actor/entropy_adv_bonus"] > 0.01


def test_no_gradient_flows_through_the_entropy_and_no_input_changes(batch):
    before = {name: value.clone() for name, value in batch.items()}
    loss = verl_loss(fused_actor("entropy_adv"), batch)[0]
    (gradient,) = torch.autograd.grad(loss, batch["entropy"])
    assert (gradient == 0).all()  # that of verl's own entropy term, whose coefficient is 0
    assert all(torch.equal(batch[name], before[name]) for name in batch)


ENTROPY_KEYS = [("entropy_adv", {}), ("maspo", {"entropy_adv": True})]


@pytest.mark.parametrize(("ratio_mode", "keys"), ENTROPY_KEYS)
def test_entropy_that_the_run_does_not_compute(batch, ratio_mode, keys):
    remedy = r"actor\.calculate_entropy: expected True.*Set actor_rollout_ref\.actor\.calculate_entropy=True"
    with pytest.raises(ValueError, match=remedy):
        fused_actor(ratio_mode, keys, calculate_entropy=False)
    # verl's trainers also compute it for an entropy_coeff.
    config = fused_actor(ratio_mode, keys, calculate_entropy=False, entropy_coeff=0.01)
    with pytest.raises(ValueError, match=remedy):
        verl_loss(config, batch)


def test_entropy_outside_of_ppo_loss(batch):
    del batch["entropy"]
    with pytest.raises(ValueError, match="maspo_ext: entropy: expected the one in the model's output.*engine workers"):
        core_algos.get_policy_loss_fn("maspo_ext.entropy_adv")(config=fused_actor("entropy_adv"), **batch)


def test_nothing_is_left_of_a_ppo_loss_that_ended(batch):
    config = fused_actor("entropy_adv")
    verl_loss(config, batch)
    with pytest.raises(KeyError):
        verl_loss(config, batch, response_mask=None)
    test_entropy_outside_of_ppo_loss(batch)


def test_bapo_reduces_once_over_verls_group(batch, monkeypatch):
    """With tensor or sequence parallelism it is not the default group."""
    alone = verl_loss(fused_actor("bapo", global_batch_info=GLOBAL | {"dp_size": 1}), batch)[2]
    calls, group = [], object()

    def all_reduce(sums, op=torch.distributed.ReduceOp.SUM, group=None):
        calls.append((op, group))
        sums.mul_(2)  # of two ranks with the same tokens, which have the bounds of one

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    both = verl_loss(fused_actor("bapo", global_batch_info=GLOBAL), batch, group)[2]
    assert calls == [(torch.distributed.ReduceOp.SUM, group)]
    assert both == pytest.approx(alone, rel=1e-2)  # eps counts half


def test_bapo_without_a_group_of_all_ranks(batch):
    config = fused_actor("bapo", global_batch_info=GLOBAL)
    with pytest.raises(ValueError, match="maspo_ext: dp_group: expected verl's group of 2.*got None.*of 1"):
        verl_loss(config, batch)


@pytest.mark.skipif(not HAS_METRIC, reason="this release of verl has no class for metrics")
def test_bapo_without_negative_tokens_has_a_metric_that_verl_can_aggregate(batch):
    from verl.utils.metric import AggregationType, Metric

    metrics = verl_loss(fused_actor("bapo"), batch, advantages=batch["advantages"].abs())[2]
    assert metrics["actor/bapo_pos_neg_ratio"] == float("inf")
    ranks = [Metric.from_dict(metrics, AggregationType.MEAN) for _ in range(2)]
    for rank in ranks:
        rank["actor/bapo_pos_neg_ratio"].append(1.5)
    merged = {name: Metric.aggregate_dp([rank[name] for rank in ranks]) for name in ("actor/bapo_pos_neg_ratio",)}
    assert np.isposinf(merged["actor/bapo_pos_neg_ratio"])


def test_ppo_loss_goes_to_workers_by_name():
    sent = pickle.loads(pickle.dumps(partial(losses.ppo_loss, config=None)))
    assert sent.func is losses.ppo_loss
    assert losses.ppo_loss.__wrapped__.__module__ == losses.ppo_loss.__module__ == losses.__name__
    from verl.workers import engine_workers

    assert engine_workers.ppo_loss is losses.ppo_loss


# ---- verl's own losses


def test_ppo_is_verls_own_function_bit_for_bit(batch):
    assert core_algos.get_policy_loss_fn("vanilla") is core_algos.compute_policy_loss_vanilla
    assert core_algos.compute_policy_loss_vanilla.__module__ == core_algos.__name__
    stock = verl_loss(actor(verl.workers.config.PolicyLossConfig()), batch)
    ours = verl_loss(actor(PolicyLossConfig(ratio_clip={"ratio_mode": "ppo"})), batch)
    assert torch.equal(ours[0], stock[0]) and torch.equal(ours[1], stock[1]) and ours[2] == stock[2]


def test_maspo_is_not_ppo(batch):
    assert not torch.allclose(verl_loss(fused_actor(), batch)[1], verl_loss(actor(), batch)[1])


@pytest.mark.parametrize("loss_agg_mode", VERLS_AGG_MODES)
def test_grpo_is_verls_vanilla(batch, loss_agg_mode):
    settings = ACTOR_CLIP | {"loss_agg_mode": loss_agg_mode, "global_batch_info": GLOBAL}
    vanilla = verl_loss(actor(**settings), batch)
    grpo = verl_loss(fused_actor("grpo", **settings), batch)
    assert_equal((*grpo[:2], {name: grpo[2][name] for name in vanilla[2]}), vanilla)
    assert min(vanilla[2]["actor/pg_clipfrac"], vanilla[2]["actor/pg_clipfrac_lower"]) > 0


def test_sapo_is_not_verls_function_but_agrees_with_it(batch):
    ours = core_algos.get_policy_loss_fn(PolicyLossConfig(ratio_clip={"ratio_mode": "sapo"}).loss_mode)
    assert core_algos.get_policy_loss_fn("sapo") is core_algos.compute_policy_loss_sapo is not ours
    verls = verl_loss(actor(PolicyLossConfig(loss_mode="sapo"), GLOBAL), batch)
    fused = verl_loss(actor(PolicyLossConfig(ratio_clip={"ratio_mode": "sapo"}), GLOBAL), batch)
    assert_equal((*fused[:2], {name: fused[2][name] for name in verls[2]}), verls)
    assert fused[2].keys() > verls[2].keys()


def test_only_our_losses_are_added_to_the_registry():
    added = {name for name, f in core_algos.POLICY_LOSS_REGISTRY.items() if not str(f.__module__).startswith("verl")}
    assert added == {"maspo"} | {f"maspo_ext.{ratio_mode}" for ratio_mode in FUSED if ratio_mode != "maspo"}


def test_name_taken_in_the_registry():
    with pytest.raises(RuntimeError, match="expected no loss named 'maspo'.*uninstall"):
        register_losses(core_algos)


# ---- places where verl would train its own loss


@pytest.mark.skipif(not HAS_BYPASS_MODE, reason="this release of verl cannot use its bypass mode")
def test_bypass_mode_never_trains_ppo_for_maspo(batch):
    # Asking for both is refused (test_config); here verl itself sets loss_mode, on the config tree.
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


@needs_distillation
@each_mode
def test_config_without_policy_loss(batch, ratio_mode):
    from verl.workers.config.distillation import DistillationLossConfig

    del batch["entropy"]
    with pytest.raises(ValueError, match="expected verl's actor config.*got DistillationLossConfig without one"):
        core_algos.get_policy_loss_fn(registry_name(ratio_mode))(config=DistillationLossConfig(), **batch)


@needs_distillation
@each_mode
@pytest.mark.parametrize("use_policy_gradient", [True, False])
def test_distillation_by_policy_gradient_is_refused(use_policy_gradient, ratio_mode):
    config = fused_actor(ratio_mode)
    from verl.trainer.distillation import losses

    distillation = SimpleNamespace(
        distillation_loss=SimpleNamespace(use_policy_gradient=use_policy_gradient, loss_mode="no such loss")
    )
    refusal = f"use_policy_gradient: expected False with ratio_mode={ratio_mode}, got True"
    with pytest.raises(ValueError, match=refusal if use_policy_gradient else "no such loss"):
        losses.distillation_loss(config, distillation, {}, {})
    for verls in (actor(), actor(PolicyLossConfig(loss_mode="sapo"))):
        with pytest.raises(ValueError, match="no such loss"):
            losses.distillation_loss(verls, distillation, {}, {})
