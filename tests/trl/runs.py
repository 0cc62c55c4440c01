"""The runs of test_example.py, in one process of their own: TRL takes seconds to import, and accelerate keeps state.

    python tests/trl/runs.py FOLDER

Each leaves model and log.json in a folder of its name; refused.json has what trainers say that cannot be made or used, and
forward.json how LinearPolicyLossTrainer calls the model.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "trl"))

import train_tiny  # noqa: E402

from maspo_ext.integrations.trl import trainer as trainers  # noqa: E402

# What TRL's loss and ours have in common beside the clip. Two updates of two micro-batches each use up a batch.
SHARED = {"steps_per_generation": 4, "temperature": 0.7, "beta": 1.0, "use_bias_correction_kl": False}
REFUSED = {
    "importance_sampling_level": "sequence",
    "top_entropy_quantile": 0.5,
    "off_policy_mask_threshold": 0.1,
    "entropy_coef": 0.1,
    "delta": 3.0,
}


def arguments(out: Path, *argv: str):
    return train_tiny.parse([*argv, "--steps", "2", "--out", str(out)])


def on_disk(build, folder: Path):
    """A build_model that leaves the model where TRL looks for its reference, too."""

    def build_and_save(tokenizer):
        model = build(tokenizer)
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder)

    return build_and_save


@contextmanager
def other_model(change):
    """Within it train_tiny builds what ``change`` makes of its build_model."""
    plain = train_tiny.build_model
    train_tiny.build_model = change(plain)
    yield
    train_tiny.build_model = plain


def scaled(build):
    """A build_model whose model does more than its head to the logits."""

    def build_and_scale(tokenizer):
        model = build(tokenizer)
        forward = model.forward

        def with_scale(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            outputs.logits = 0.5 * outputs.logits
            return outputs

        model.forward = with_scale
        return model

    return build_and_scale


def with_adapters(build):
    """A build_model with LoRA on all layers but the head, which is trained as a whole."""

    def build_and_adapt(tokenizer):
        return get_peft_model(build(tokenizer), LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], r=4))

    return build_and_adapt


def headless(build):
    """A build_model whose model makes the logits without a call of its head."""

    def build_and_skip(tokenizer):
        model = build(tokenizer)

        def without_head(input_ids, **_others):
            hidden = model.model(input_ids=input_ids).last_hidden_state
            return CausalLMOutput(logits=F.linear(hidden, model.lm_head.weight))

        model.forward = without_head
        return model

    return build_and_skip


def in_bfloat16(build):
    """A build_model in bfloat16, whose last norm returns float32 under autocast, as a LayerNorm does on a GPU."""

    def as_on_a_gpu(_norm, _arguments, hidden):
        return hidden.float() if torch.is_autocast_enabled("cpu") else hidden

    def build_and_cast(tokenizer):
        model = build(tokenizer).to(torch.bfloat16)
        model.model.norm.register_forward_hook(as_on_a_gpu)
        return model

    return build_and_cast


def said(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals(out: Path) -> dict[str, str]:
    policy, linear = arguments(out), arguments(out, "--loss", "linear")
    messages = {
        name: said(lambda setting={name: value}: train_tiny.make_trainer(policy, **setting))
        for name, value in REFUSED.items()
    }
    trainer = train_tiny.make_trainer(linear)
    tokens = torch.ones(1, 4, dtype=torch.long)
    messages["images"] = said(
        lambda: trainer._get_per_token_logps_and_entropies(trainer.model, tokens, tokens, 2, pixel_values=tokens)
    )
    with other_model(scaled):
        messages["scaled by policy"] = said(lambda: train_tiny.make_trainer(policy))
        messages["scaled"] = said(lambda: train_tiny.make_trainer(linear))
    with other_model(headless):
        messages["headless"] = said(lambda: train_tiny.make_trainer(linear))
    return messages


def far_batch(trainer) -> dict[str, torch.Tensor]:
    """A batch whose ratios are about 7, with advantages of both signs, and to whose reference it is as far as verl's k3 sees."""
    trainer.model.eval()  # as in an evaluation, for which no training has to run
    tokens = torch.arange(24).view(4, 6) % 200
    attention = torch.ones_like(tokens)
    log_prob = trainer._get_per_token_logps_and_entropies(trainer.model, tokens, attention, 4)[0].detach()
    return {
        "prompt_ids": tokens[:, :2],
        "prompt_mask": attention[:, :2],
        "completion_ids": tokens[:, 2:],
        "completion_mask": attention[:, 2:],
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5]),
        "num_items_in_batch": torch.tensor(16),
        "old_per_token_logps": log_prob - 2,
        "ref_per_token_logps": log_prob + 3,
    }


def loss_and_gradients(trainer, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    loss = trainer._compute_loss(trainer.model, inputs)
    return [loss, *torch.autograd.grad(loss, list(trainer.model.parameters()))]


def far_off_policy(out: Path) -> dict[str, dict[str, list[float]]]:
    """By trainer and setting, the loss of far_batch and the norm of its gradient."""
    settings = {
        "no delta": {},
        "delta": {"delta": 4.0},
        "clip": {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 2.5},
        "KL": {"beta": 0.5, "use_bias_correction_kl": False},
    }
    results = {}
    for loss in ("policy", "linear", "trl"):
        for name, setting in settings.items():
            trainer = train_tiny.make_trainer(arguments(out, "--loss", loss, "--ratio-mode", "grpo"), **setting)
            inputs = far_batch(trainer)
            if not trainer.beta:
                del inputs["ref_per_token_logps"]
            value, *gradients = loss_and_gradients(trainer, inputs)
            norm = torch.nn.utils.get_total_norm(gradients)
            results.setdefault(loss, {})[name] = [float(value), float(norm)]
    return results


def from_all_hidden_states(model, _head, input_ids, **inputs):
    """What before_head returns, from the hidden states of all layers, as transformers keeps them on demand."""
    outputs = model(input_ids=input_ids, output_hidden_states=True, **inputs)
    return outputs.hidden_states[-1], outputs


def forward_calls(out: Path) -> dict[str, object]:
    """How LinearPolicyLossTrainer calls the model, and what it leaves there."""
    trainer = train_tiny.make_trainer(arguments(out, "--loss", "linear"), beta=0.5, use_bias_correction_kl=False)
    model, head = trainer.model, trainer.model.lm_head
    inputs, calls = far_batch(trainer), []

    def note(_model, _arguments, outputs):
        calls.append({"hidden_states": outputs.hidden_states is not None, "logits": list(outputs.logits.shape)})

    model.register_forward_hook(note)
    ours = loss_and_gradients(trainer, inputs)
    with torch.no_grad():
        trainer._get_per_token_logps_and_entropies(model, inputs["prompt_ids"], inputs["prompt_mask"], 1)
    result = {"calls": list(calls), "hooks": len(head._forward_pre_hooks)}
    before_head, trainers.before_head = trainers.before_head, from_all_hidden_states
    theirs = loss_and_gradients(trainer, inputs)
    trainers.before_head = before_head
    result["same"] = all(map(torch.equal, ours, theirs)) and calls[-1]["hidden_states"]
    try:
        trainer._compute_loss(model, inputs | {"prompt_ids": inputs["prompt_ids"] + 1000})  # words that there are not
    except IndexError:
        result["hooks after an error"] = len(head._forward_pre_hooks)
    return result


def train_as_trl_does(out: Path, name: str, **settings) -> None:
    """Trains with TRL's own loss and with ours of the same method."""
    for loss in ("policy", "linear", "trl"):
        argv = ("--loss", loss, "--ratio-mode", "grpo", "--accumulate", "2")
        train_tiny.train(train_tiny.make_trainer(arguments(out / f"{name}-{loss}", *argv), **SHARED | settings))


def main(out: Path) -> None:
    for loss in ("policy", "linear"):
        train_tiny.train(train_tiny.make_trainer(arguments(out / loss, "--loss", loss)))
    train_tiny.train(train_tiny.make_trainer(arguments(out / "on-policy", "--loss", "linear", "--updates", "1")))
    checkpointed = train_tiny.make_trainer(arguments(out / "checkpointed", "--loss", "linear"), gradient_checkpointing=True)
    train_tiny.train(checkpointed)
    assert checkpointed.model.is_gradient_checkpointing
    with other_model(in_bfloat16):
        for loss in ("policy", "linear"):
            train_tiny.train(train_tiny.make_trainer(arguments(out / f"bfloat16-{loss}", "--loss", loss), bf16=True))
    (out / "refused.json").write_text(json.dumps(refusals(out / "refused")))
    with other_model(lambda build: on_disk(build, out / "reference")):
        (out / "far.json").write_text(json.dumps(far_off_policy(out / "far")))
        (out / "forward.json").write_text(json.dumps(forward_calls(out / "forward")))
        train_as_trl_does(out, "shared")
    with other_model(with_adapters):
        train_as_trl_does(out, "adapters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
