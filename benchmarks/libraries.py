"""The losses of other libraries, by our ratio_mode: taking the same tensors, and computing the same method."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable


def library_functions() -> dict[str, dict[str, Callable]]:
    """By library and ratio_mode; a library that is not installed is left out, and a line says so.

    TRL has no such function: its loss is a method of its trainer.
    """
    functions = {}
    for name, (module, load) in {"verl": ("verl", _verl), "Liger": ("liger_kernel", _liger)}.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is left out: {module} is not installed")
        else:
            functions[name] = load()
    return functions


def _verl() -> dict[str, Callable]:
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


def _liger() -> dict[str, Callable]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def loss(log_prob, old_log_prob, advantages, response_mask, **keywords):
        mask = response_mask.to(log_prob.dtype)
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(
            log_prob, mask, advantages[:, 0], mask, old_per_token_logps=old_log_prob, beta=0.0, **keywords
        )

    return {
        "ppo": lambda **batch: loss(**batch, loss_type="bnpo", delta=3.0),
        "sapo": lambda **batch: loss(**batch, loss_type="sapo"),
    }
