"""The runs of test_example.py, in one process of their own: TRL takes seconds to import, and accelerate keeps state.

    python tests/trl/runs.py FOLDER

Each leaves model and log.json in a folder of its name; refused.json has what trainers say that cannot be made or used.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "trl"))

import train_tiny  # noqa: E402

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
    plain = train_tiny.build_model
    train_tiny.build_model = scaled(plain)
    messages["scaled by policy"] = said(lambda: train_tiny.make_trainer(policy))
    messages["scaled"] = said(lambda: train_tiny.make_trainer(linear))
    train_tiny.build_model = plain
    return messages


def far_off_policy(out: Path) -> dict[str, dict[str, float]]:
    """By trainer and clip, the loss of a batch whose ratios are about 7, with advantages of both signs."""
    clips = {"no delta": {}, "delta": {"delta": 4.0}, "clip": {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 2.5}}
    losses = {}
    for loss in ("policy", "linear", "trl"):
        for name, clip in clips.items():
            trainer = train_tiny.make_trainer(arguments(out, "--loss", loss, "--ratio-mode", "grpo"), **clip)
            trainer.model.eval()  # as in an evaluation, for which no training has to run
            tokens = torch.arange(24).view(4, 6) % 200
            inputs = {
                "prompt_ids": tokens[:, :2],
                "prompt_mask": torch.ones(4, 2, dtype=torch.long),
                "completion_ids": tokens[:, 2:],
                "completion_mask": torch.ones(4, 4, dtype=torch.long),
                "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5]),
                "num_items_in_batch": torch.tensor(16),
            }
            attention = torch.ones_like(tokens)
            log_prob = trainer._get_per_token_logps_and_entropies(trainer.model, tokens, attention, 4)[0].detach()
            inputs["old_per_token_logps"] = log_prob - 2
            losses.setdefault(loss, {})[name] = float(trainer._compute_loss(trainer.model, inputs))
    return losses


def main(out: Path) -> None:
    for loss in ("policy", "linear"):
        train_tiny.train(train_tiny.make_trainer(arguments(out / loss, "--loss", loss)))
    train_tiny.train(train_tiny.make_trainer(arguments(out / "on-policy", "--loss", "linear", "--updates", "1")))
    (out / "far.json").write_text(json.dumps(far_off_policy(out / "far")))
    (out / "refused.json").write_text(json.dumps(refusals(out / "refused")))
    train_tiny.build_model = on_disk(train_tiny.build_model, out / "reference")
    for loss in ("policy", "linear", "trl"):
        argv = ("--loss", loss, "--ratio-mode", "grpo", "--accumulate", "2")
        train_tiny.train(train_tiny.make_trainer(arguments(out / f"shared-{loss}", *argv), **SHARED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
