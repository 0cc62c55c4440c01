"""Train a tiny random Qwen2 with TRL and a loss of maspo_ext, offline and on a CPU: the reward is the share of digits.

    python examples/trl/train_tiny.py                     # maspo_ext.PolicyLoss of TRL's log-probabilities
    python examples/trl/train_tiny.py --loss linear       # maspo_ext.LinearPolicyLoss, from hidden states without logits
    python examples/trl/train_tiny.py --loss trl          # TRL's own loss, to compare
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))

import torch  # noqa: E402
from byte_tokenizer import build_tokenizer  # noqa: E402
from datasets import Dataset  # noqa: E402
from make_tiny_qwen2 import build_model  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

import maspo_ext  # noqa: E402
from maspo_ext.integrations.trl import LinearPolicyLossTrainer, PolicyLossTrainer  # noqa: E402

TRAINERS = {"policy": PolicyLossTrainer, "linear": LinearPolicyLossTrainer, "trl": GRPOTrainer}
PROMPTS = [f"{a}+{b}=" for a in range(1, 9) for b in range(10, 18)]


def share_of_digits(completions: list[str], **_others) -> list[float]:
    """The reward: between 0 and 1 for each completion, a random model's being about 0.04."""
    return [sum(letter.isdigit() for letter in text) / max(len(text), 1) for text in completions]


def make_trainer(
    arguments: argparse.Namespace, *, bf16: bool = False, gradient_checkpointing: bool = False, **settings
) -> GRPOTrainer:
    """The trainer of the command line, with further settings of GRPOConfig."""
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    config = GRPOConfig(
        output_dir=str(arguments.out),
        use_cpu=True,
        bf16=bf16,
        seed=arguments.seed,
        max_steps=arguments.steps,
        learning_rate=3e-3,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=16,
        gradient_accumulation_steps=arguments.accumulate,
        # More than one update per batch: only then has a clip or a gate something to do.
        num_iterations=arguments.updates,
        gradient_checkpointing=gradient_checkpointing,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return TRAINERS[arguments.loss](
        model=build_model(tokenizer),
        reward_funcs=share_of_digits,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        **({} if arguments.loss == "trl" else {"ratio_mode": arguments.ratio_mode}),
    )


def train(trainer: GRPOTrainer) -> None:
    """Trains, and leaves the model and TRL's log in the trainer's folder."""
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        (Path(trainer.args.output_dir) / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))
        rewards = [step["reward"] for step in trainer.state.log_history if "reward" in step]
        print(f"reward: {rewards[0]:.3f} -> {rewards[-1]:.3f}; model and log.json: {trainer.args.output_dir}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=TRAINERS, default="policy")
    parser.add_argument("--ratio-mode", choices=maspo_ext.RATIO_MODES, default="maspo", help="the method of our losses")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--updates", type=int, default=2, help="of the model for each batch of completions")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of 32 completions in an update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/trl"), help="folder for the model and log.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(make_trainer(parse()))
