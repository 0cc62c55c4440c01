"""impl_backend=maspo: verl's fused forwards by ``maspo_ext.linear_logprob``, against the forwards that make logits."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import verl  # noqa: F401  loads the plugin
from peft import LoraConfig, get_peft_model
from verl.models.transformers.monkey_patch import apply_monkey_patch

import maspo_ext

from .ranks import run_ranks
from .release import ENGINE_SHIFTS_LABELS

# verl says so where it makes the list of its engines.
pytestmark = pytest.mark.filterwarnings("ignore:.* engine is not available")

SCRIPT = Path(__file__).with_name("fused_update.py")
KEY = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
SUPPORTED = {
    "untied": ("Qwen2ForCausalLM", {}),
    "tied": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "bias": ("PhiForCausalLM", {"num_key_value_heads": 2}),
    "neutral scale": ("GraniteForCausalLM", {"logits_scaling": 1.0}),
}
# Of the families whose forward verl writes itself, the one that runs with this transformers.
VISION = {
    "text_config": SIZES | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
    "vision_config": {
        "depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16, "patch_size": 4,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    },
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
}  # fmt: skip
# architecture, settings, and words of the message: what was expected, what came
UNSUPPORTED = {
    "value model": ("Qwen2ForTokenClassification", {}, ["lm_head is an nn.Linear", "with NoneType"]),
    "scaled logits": ("GraniteForCausalLM", {"logits_scaling": 8.0}, ["what lm_head returns", "logits_scaling=8.0"]),
    "bounded logits": ("Gemma2ForCausalLM", {}, ["what lm_head returns", "final_logit_softcapping=30.0"]),
}


def make_model(architecture, settings):
    torch.manual_seed(0)
    config_class = getattr(transformers, architecture).config_class
    settings = settings if "text_config" in settings else SIZES | settings
    model = getattr(transformers, architecture)(config_class(**settings, attn_implementation="eager"))
    bias = getattr(getattr(model, "lm_head", None), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    return model.train(False)


def fuse(model, backend="maspo"):
    apply_monkey_patch(model, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend=backend)
    return model


def by_logits(model, input_ids, labels, temperature):
    log_probs = (model(input_ids).logits.float() / temperature).log_softmax(-1)
    return log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


def tokens():
    return torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def op_calls(monkeypatch):
    """The arguments of every call of the op."""
    calls, op = [], maspo_ext.linear_logprob
    monkeypatch.setattr(maspo_ext, "linear_logprob", lambda *arguments: calls.append(arguments) or op(*arguments))
    return calls


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", SUPPORTED)
def test_fused_forward_equals_logits(case, temperature, op_calls):
    model, input_ids = make_model(*SUPPORTED[case]), tokens()
    fused = fuse(copy.deepcopy(model))
    output = fused(input_ids, temperature=temperature, return_dict=True)
    expected = by_logits(model, input_ids, input_ids.roll(-1, dims=-1), temperature)
    assert len(op_calls) == 1 and output.logits is None
    weights = torch.randn(2, *input_ids.shape)
    for one in zip((output.log_probs, output.entropy), expected, strict=True):
        torch.testing.assert_close(*one, rtol=1e-5, atol=1e-5)
    (output.log_probs * weights[0] + output.entropy * weights[1]).sum().backward()
    (expected[0] * weights[0] + expected[1] * weights[1]).sum().backward()
    reference = dict(model.named_parameters())
    for name, parameter in fused.named_parameters():
        scale = reference[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.skipif(not ENGINE_SHIFTS_LABELS, reason="in this release of verl the model's forward shifts the labels")
def test_labels_of_the_engine_are_taken_as_they_are():
    """Under Ulysses verl shifts them before it cuts the sequence."""
    model, input_ids = make_model(*SUPPORTED["untied"]), tokens()
    labels = tokens().flip(-1)
    output = fuse(copy.deepcopy(model))(input_ids, shift_labels=labels, return_dict=True)
    torch.testing.assert_close(output.log_probs, by_logits(model, input_ids, labels, 1.0)[0], rtol=1e-5, atol=1e-5)


def test_only_the_model_that_asked_is_changed(op_calls):
    fused, torch_backend = make_model(*SUPPORTED["untied"]), make_model(*SUPPORTED["untied"])
    own_forward = type(fused).forward
    fuse(fused)
    assert type(fused).forward is own_forward
    assert fused.lm_head(torch.ones(1, 16)).shape == (1, 64)
    try:
        fuse(torch_backend, "torch")
        torch_backend(tokens(), return_dict=True)
        assert op_calls == []
        fused(tokens(), return_dict=True)
        assert len(op_calls) == 1
    finally:
        type(fused).forward = own_forward


def test_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature: expected .* got 0"):
        fuse(make_model(*SUPPORTED["untied"]))(tokens(), temperature=0.0, return_dict=True)


def test_hidden_states_in_another_dtype():
    """As autocast leaves them after a LayerNorm."""
    model = fuse(make_model(*SUPPORTED["untied"]))
    model.lm_head.to(torch.bfloat16)
    output = model(tokens(), return_dict=True)
    assert output.log_probs.dtype == output.entropy.dtype == torch.float32


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_model_is_refused(case):
    architecture, settings, words = UNSUPPORTED[case]
    with pytest.raises(ValueError, match=f"{KEY}=maspo: expected .*'{architecture} .*use_fused_kernels=False") as error:
        fuse(make_model(architecture, settings))
    for word in words:
        assert word in str(error.value)


def with_lora(model, *target_modules):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=list(target_modules), init_lora_weights=False))


def test_lora_on_layers():
    model, input_ids = make_model(*SUPPORTED["untied"]), tokens()
    output = with_lora(fuse(copy.deepcopy(model)), "q_proj")(input_ids, return_dict=True)
    expected = by_logits(with_lora(model, "q_proj"), input_ids, input_ids.roll(-1, dims=-1), 1.0)
    torch.testing.assert_close(output.log_probs, expected[0], rtol=1e-5, atol=1e-5)


def test_lora_on_the_head_is_refused():
    model = with_lora(fuse(make_model(*SUPPORTED["untied"])), "q_proj", "lm_head")
    with pytest.raises(ValueError, match=f"{KEY}=maspo: expected lm_head without an adapter, got 'peft.*Leave lm_head"):
        model(tokens(), return_dict=True)


@pytest.fixture
def new_engine(monkeypatch):
    """Makes an engine by verl's registry, which finds the model's config in place of it."""
    from verl.workers.engine.base import EngineRegistry

    def new(strategy, impl_backend, use_fused_kernels=True, **settings):
        options = None if impl_backend is None else {"impl_backend": impl_backend}
        config = SimpleNamespace(use_fused_kernels=use_fused_kernels, fused_kernel_options=options, **settings)
        return EngineRegistry.new("language_model", strategy, model_config=config), config

    monkeypatch.setattr(EngineRegistry, "get_engine_cls", lambda *_: lambda model_config: model_config)
    return new


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
@pytest.mark.parametrize("impl_backend", ["maspo", "torch", "triton", "liger", "xyz", None])
def test_engine_is_made(strategy, impl_backend, new_engine, caplog):
    engine, config = new_engine(strategy, impl_backend)
    assert engine is config and not caplog.records


@pytest.mark.parametrize("strategy", ["megatron", "veomni", "automodel", "torchtitan"])
def test_engine_with_other_fused_kernels_is_refused(strategy, new_engine):
    new_engine(strategy, "triton")
    with pytest.raises(ValueError, match=f"{KEY}=maspo: expected .*fsdp or fsdp2, got '{strategy}'.*drop this key"):
        new_engine(strategy, "maspo")


def test_family_that_verl_does_not_fuse_is_refused(new_engine):
    hf_config = SimpleNamespace(model_type="kimi_vl")
    new_engine("fsdp2", "torch", hf_config=hf_config)
    with pytest.raises(ValueError, match=f"{KEY}=maspo: expected .*a fused forward for, got 'kimi_vl'.*=False"):
        new_engine("fsdp2", "maspo", hf_config=hf_config)


LORA = {"lora_rank": 8, "exclude_modules": None}


@pytest.mark.parametrize("target_modules", [["q_proj", "lm_head"], ".*(q_proj|lm_head)", "lm_head"], ids=str)
def test_lora_on_the_head_is_refused_before_there_is_a_model(target_modules, new_engine):
    settings = {**LORA, "target_modules": target_modules}
    new_engine("fsdp2", "torch", **settings)
    with pytest.raises(ValueError, match=f"{KEY}=maspo: expected lm_head without an adapter, got .*target_modules=.*Leave lm_head"):
        new_engine("fsdp2", "maspo", **settings)
    new_engine("fsdp2", "maspo", **settings | {"lora_rank": 0})
    new_engine("fsdp2", "maspo", **settings | {"exclude_modules": "lm_head"})


@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj"], ".*_proj", None], ids=str)
def test_lora_elsewhere(target_modules, new_engine):
    new_engine("fsdp2", "maspo", **LORA, target_modules=target_modules)


@pytest.mark.parametrize("impl_backend", ["masp0", "MASPO", "mapso", "maspo_ext"])
def test_misspelt_backend(impl_backend, new_engine):
    with pytest.raises(ValueError, match=f"{KEY}: expected maspo .*, got '{impl_backend}'. Did you mean maspo?"):
        new_engine("fsdp2", impl_backend)


def test_backend_without_fused_kernels_warns(new_engine, caplog):
    with caplog.at_level(logging.WARNING):
        new_engine("fsdp2", "maspo", use_fused_kernels=False)
    assert f"{KEY}=maspo set but not used. Set actor_rollout_ref.model.use_fused_kernels=True" in caplog.text


@pytest.fixture(scope="module")
def updates(request, tmp_path_factory):
    """On that many ranks, by case, what verl's engine computed without fused kernels, and with ours."""
    folder = tmp_path_factory.mktemp("fused")
    models = {name: SUPPORTED[name] for name in ("untied", "tied")}
    for name, model in (models | {"vision": ("Qwen3VLForConditionalGeneration", VISION)}).items():
        make_model(*model).save_pretrained(folder / name)
    run_ranks(request.param, SCRIPT, folder, folder / "result.pt")
    return torch.load(folder / "result.pt", weights_only=False)


def numbers(metrics):
    """What the update reports: the loss, and more by rank and micro-batch."""
    of_rank = {name: value for name, value in metrics.items() if name.startswith("actor/")}
    return {name: metrics[name] for name in ("loss", "grad_norm")} | {
        (name, rank, micro_batch): number
        for name, ranks in of_rank.items()
        for rank, metric in enumerate(ranks)
        for micro_batch, number in enumerate(metric.values)
    }


def assert_same_update(with_logits, fused, dtype=torch.float32):
    # verl's logits have 8 bits in bfloat16.
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert fused["dtypes"] == {dtype}
    assert fused["calls"] == with_logits["logits"] > 0 and fused["logits"] == with_logits["calls"] == 0
    for name, expected in with_logits["policy"].items():
        policy = fused["policy"][name].values()
        assert policy.dtype == torch.float32
        torch.testing.assert_close(policy, expected.values().float(), rtol=tolerance, atol=tolerance)
    if dtype == torch.bfloat16:
        assert fused["metrics"]["loss"] == pytest.approx(with_logits["metrics"]["loss"], abs=tolerance)
    else:
        assert numbers(fused["metrics"]) == pytest.approx(numbers(with_logits["metrics"]), rel=1e-4, abs=1e-5)
    assert fused["gradients"].keys() == with_logits["gradients"].keys()
    for name, expected in with_logits["gradients"].items():
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(fused["gradients"][name], expected, rtol=1e-4, atol=atol, msg=name)
    assert fused["moved"] > 0


ON_1_RANK = pytest.mark.parametrize("updates", [1], indirect=True, scope="module")
ON_2_RANKS = pytest.mark.parametrize("updates", [2], indirect=True, scope="module")
ON_1_AND_2_RANKS = pytest.mark.parametrize("updates", [1, 2], indirect=True, scope="module")
CASES = ["padded", "packed", "tied", "checkpointed", "fsdp1", "vision", "entropy", "lora"]


@pytest.mark.slow
@ON_1_AND_2_RANKS
@pytest.mark.parametrize("case", CASES)
def test_update_equals_the_one_by_logits(updates, case):
    assert_same_update(*updates[case])


@pytest.mark.slow
@ON_1_AND_2_RANKS
def test_update_in_bfloat16(updates):
    assert_same_update(*updates["bfloat16"], dtype=torch.bfloat16)


@pytest.mark.slow
@ON_1_AND_2_RANKS
def test_bfloat16_is_nearer_to_float32_than_by_logits(updates):
    """The op's logits are float32. The rest of the model is as imprecise either way, which is most of a log-probability's error."""
    expected = updates["packed"][1]

    def errors(result):
        names = ("log_probs", "entropy")
        return [(result["policy"][name].values() - expected["policy"][name].values()).abs().mean().item() for name in names]

    of_logits, fused = map(errors, updates["bfloat16"])
    assert fused[0] < 1.05 * of_logits[0] and fused[1] < 0.8 * of_logits[1]


@pytest.mark.slow
@ON_2_RANKS
def test_update_under_ulysses(updates):
    assert_same_update(*updates["ulysses"])


@pytest.mark.slow
@ON_1_RANK
@pytest.mark.parametrize("case", [*CASES, "bfloat16"])
def test_first_update_sees_the_policy_that_the_op_computed(updates, case):
    """The old log-probabilities come from a forward without gradient, the new ones from one with."""
    metrics = numbers(updates[case][1]["on_policy"])
    ratios = [number for key, number in metrics.items() if key[0] in ("actor/ratio_min", "actor/ratio_max")]
    assert ratios == pytest.approx([1.0] * 8, abs=1e-6)
