"""The losses of other libraries, by our ratio_mode: taking the same tensors, and computing the same method.

That they compute the same is checked in ``tests/benchmarks``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import torch
from extras import LIGER, TRL

# Liger's options and TRL's have the same names and, but for these, defaults that are ours. bnpo: the mean over all tokens.
_OF_GRPO = {
    "ppo": {"loss_type": "bnpo", "epsilon_high": 0.2, "delta": 3.0},
    "clip_higher": {"loss_type": "bnpo", "epsilon_high": 0.28, "delta": 10.0},
    "sapo": {"loss_type": "sapo"},
}
Functions = dict[str, Callable]


def library_functions() -> dict[str, Functions]:
    """By library and ratio_mode; a library that cannot be imported is left out, and a line says why and what to do."""
    functions, missing = load_libraries()
    for name, why in missing.items():
        print(f"left out: {name}: {why}")
    return functions


def load_libraries() -> tuple[dict[str, Functions], dict[str, str]]:
    """By library its functions; and by library that cannot be imported why, and what to do."""
    functions, missing = {}, {}
    for name, load in LIBRARIES.items():
        try:
            functions[name] = load()
        except Exception as error:  # of any kind: a library of another version, or of which a part is missing
            missing[name] = f"{error}. {REMEDIES.get(name, '')}".rstrip()
    return functions, missing


def _verl() -> Functions:
    import verl  # noqa: F401  loads its plugins
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    names = {"ppo": "vanilla", "sapo": "sapo"}
    functions = {mode: core_algos.get_policy_loss_fn(name) for mode, name in names.items()}
    return {
        mode: lambda function=function, **batch: function(config=config, loss_agg_mode="token-mean", **batch)
        for mode, function in functions.items()
    }


def _liger() -> Functions:
    with LIGER.importable():
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def function(options: dict) -> Callable:
        def loss(log_prob, old_log_prob, advantages, response_mask):
            mask = response_mask.to(log_prob.dtype)
            return LigerFusedLinearGRPOFunction.ppo_loss_fn(
                log_prob, mask, advantages[:, 0], mask, old_per_token_logps=old_log_prob, beta=0.0, **options
            )

        return loss

    return {mode: function(options) for mode, options in _OF_GRPO.items()}


def _trl() -> Functions:
    """The method of its trainer that makes the loss and its statistics, on one process and without a model.

    In place of the trainer stands an object with the attributes which the method reads, and whose log-probabilities are the
    batch's. Spared are the joining of prompts and completions, which are not looked at, and the mean of the entropy.
    """
    with TRL.importable():
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

    # Not GRPOConfig(): to make one sets up devices and processes.
    defaults = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    accelerator = SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value)

    def function(options: dict) -> Callable:
        settings = SimpleNamespace(**(defaults | options))

        def loss(log_prob, old_log_prob, advantages, response_mask):
            entropy = log_prob.new_zeros(len(log_prob), 1)  # one value per row, which the method takes, too
            trainer = SimpleNamespace(
                **vars(settings),
                args=settings,
                epsilon_low=settings.epsilon,
                accelerator=accelerator,
                model=SimpleNamespace(training=True),
                current_gradient_accumulation_steps=1,
                aux_loss_enabled=False,
                _entropy_bonus_enabled=False,
                _get_per_token_logps_and_entropies=lambda *_, **__: (log_prob, entropy, None),
                _metrics={"train": defaultdict(list)},
            )
            no_prompt = response_mask[:, :0]
            inputs = {
                "prompt_ids": torch.empty_like(no_prompt, device="meta"),
                "completion_ids": torch.empty_like(response_mask, device="meta"),
                "prompt_mask": no_prompt,
                "completion_mask": response_mask,
                "advantages": advantages[:, 0],
                "old_per_token_logps": old_log_prob,
            }
            return (GRPOTrainer._compute_loss(trainer, None, inputs),)

        return loss

    return {mode: function(options) for mode, options in _OF_GRPO.items()}


LIBRARIES: dict[str, Callable[[], Functions]] = {"verl": _verl, "Liger": _liger, "TRL": _trl}
REMEDIES = {"Liger": LIGER.remedy(), "TRL": TRL.remedy()}
