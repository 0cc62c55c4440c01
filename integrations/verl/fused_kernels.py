"""``fused_kernel_options.impl_backend=maspo``: log-probabilities and entropy of the policy by ``linear_logprob``.

A fused forward of verl calls the model's base and hands ``FusedLinearForPPO`` the hidden states and ``lm_head.weight``.
Under FSDP2 that weight is a shard, since verl shards the head on its own and only a call of the head gathers it (verl's
own backends stop there, or lose the gradients of other ranks). Here ``FusedLinearForPPO`` calls the head, and that
returns log-probabilities in place of logits: gathering, casts and gradients are those of the forward that is not fused.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from contextvars import ContextVar
from difflib import get_close_matches
from types import MethodType, ModuleType
from typing import Any

import torch

import maspo_ext

from .import_hook import when_imported
from .ratio_clip import key_error

BACKEND = "maspo"

_log = logging.getLogger(__name__)
_MODEL_KEY = "actor_rollout_ref.model"
_KEY = f"{_MODEL_KEY}.fused_kernel_options.impl_backend"
_HEAD = "lm_head"
_STRATEGIES = ("fsdp", "fsdp2")
# Of these verl fuses nothing: it prints a line, and fails after the first rollout.
_NOT_FUSED = ("kimi_vl",)
# What transformers' models call a factor or a bound of the logits after the head. The fused forwards apply none.
_CHANGES_OF_LOGITS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
)

_head: ContextVar[torch.nn.Module | None] = ContextVar("maspo_ext_lm_head", default=None)


def install() -> None:
    """Add the backend to verl's in this process; a second call changes nothing."""
    when_imported("verl.models.transformers.monkey_patch", _add_to_choice)
    when_imported("verl.utils.experimental.torch_functional", _call_head)
    when_imported("verl.workers.config.actor", _guard_driver)
    when_imported("verl.workers.engine.base", _guard_engines)


class LogProbHead(torch.nn.Linear):
    """A language model's head that, given targets, returns ``linear_logprob`` in place of the logits."""

    def forward(self, hidden: torch.Tensor, target: torch.Tensor | None = None, temperature: float = 1.0):
        if target is None:
            return super().forward(hidden)
        # Autocast leaves the output of a LayerNorm in float32, and a Linear takes it.
        return maspo_ext.linear_logprob(hidden.to(self.weight.dtype), self.weight, target, temperature, self.bias)


def _add_to_choice(monkey_patch: ModuleType) -> None:
    """Have verl's ``patch_forward_with_backends`` know ours; for an unknown name it prints a line and does nothing."""
    patch_forward = monkey_patch.patch_forward_with_backends

    @functools.wraps(patch_forward)
    def with_ours(model, use_fused_kernels=False, fused_kernels_backend=None):
        if not use_fused_kernels or fused_kernels_backend != BACKEND:
            return patch_forward(model, use_fused_kernels, fused_kernels_backend)
        _require_plain_head(model)
        # verl chooses the forward by the family, and gives it to the class: other models of it shall keep theirs.
        model_class, forward = type(model), type(model).forward
        patch_forward(model, True, "torch")
        fused_forward, model_class.forward = model_class.forward, forward
        model.lm_head.__class__ = LogProbHead
        model.forward = MethodType(_with_head(fused_forward), model)
        print(f"maspo_ext: linear_logprob takes the place of the Torch backend in {model_class.__name__}")

    monkey_patch.patch_forward_with_backends = with_ours


def _with_head(fused_forward):
    """A family's forward for the torch backend, which leaves the model's head where ``FusedLinearForPPO`` finds it."""

    takes_labels = "shift_labels" in inspect.signature(fused_forward).parameters

    @functools.wraps(fused_forward)
    def forward(self, *args, **kwargs):
        _require_no_adapter(self.lm_head)
        if not takes_labels:
            _require_whole_sequences()
        token = _head.set(self.lm_head)
        try:
            return fused_forward(self, *args, **kwargs)
        finally:
            _head.reset(token)

    return forward


def _call_head(torch_functional: ModuleType) -> None:
    """Have verl's ``FusedLinearForPPO`` call the head within a forward of ours; verl looks it up at each call."""

    class FusedLinearForPPO(torch_functional.FusedLinearForPPO):
        def forward(self, hidden_states, vocab_weights, input_ids, temperature=1.0):
            head = _head.get()
            if head is None:
                return super().forward(hidden_states, vocab_weights, input_ids, temperature)
            return head(hidden_states, input_ids, temperature)

    torch_functional.FusedLinearForPPO = FusedLinearForPPO


def _guard_driver(actors: ModuleType) -> None:
    """Check the settings where verl's driver validates the actor's: before it starts a worker."""
    validate = actors.ActorConfig.validate

    @functools.wraps(validate)
    def checked(self, n_gpus, train_batch_size, model_config=None):
        validate(self, n_gpus, train_batch_size, model_config)
        _check(model_config, self.strategy)

    actors.ActorConfig.validate = checked


def _guard_engines(engines: ModuleType) -> None:
    """Check them where an engine is made, too: not every trainer of verl validates, and a model is known only here."""
    new = engines.EngineRegistry.new.__func__

    @functools.wraps(new)
    def checked(cls, model_type, backend, *args, **kwargs):
        model_config = args[0] if args else kwargs.get("model_config")
        _check(model_config, backend)
        return new(cls, model_type, backend, *args, **kwargs)

    engines.EngineRegistry.new = classmethod(checked)


def _check(model_config: Any, strategy: str) -> None:
    name = (getattr(model_config, "fused_kernel_options", None) or {}).get("impl_backend")
    if name != BACKEND:
        # Only what looks like ours: the other names are verl's to judge.
        if get_close_matches(str(name).lower(), [BACKEND, maspo_ext.__name__], n=1, cutoff=0.75):
            raise key_error(_KEY, f"{BACKEND} or one of verl's backends", name, f"Did you mean {BACKEND}?")
    elif not model_config.use_fused_kernels:
        _log.warning(
            "maspo_ext: %s=%s set but not used. Set %s.use_fused_kernels=True to use it, or drop it.",
            _KEY, BACKEND, _MODEL_KEY,
        )  # fmt: skip
    elif strategy not in _STRATEGIES:
        raise _refused(
            f"an engine with strategy {' or '.join(_STRATEGIES)}",
            strategy,
            "That one has fused kernels of its own or none: drop this key, or set use_fused_kernels=False.",
        )
    else:
        family = getattr(getattr(model_config, "hf_config", None), "model_type", None)
        if family in _NOT_FUSED:
            raise _refused("a model that verl has a fused forward for", family)
        _require_no_adapter_to_come(model_config)


def _require_plain_head(model: torch.nn.Module) -> None:
    """Refuse a model whose logits are not the output of one ``nn.Linear``."""
    name, head = type(model).__name__, getattr(model, "lm_head", None)
    if type(head) is not torch.nn.Linear:
        raise _refused("a model whose lm_head is an nn.Linear", f"{name} with {type(head).__name__}")
    config = model.config.get_text_config()
    for key in _CHANGES_OF_LOGITS:
        value = getattr(config, key, None)
        if value not in (None, 1):
            raise _refused("a model whose logits are what lm_head returns", f"{name} with {key}={value}")


def _require_no_adapter_to_come(model_config: Any) -> None:
    """The same as :func:`_require_no_adapter`, of what peft will do with these keys, before there is a model."""

    def has_head(key: str) -> bool:
        modules = getattr(model_config, key, None)
        if isinstance(modules, str):  # a pattern; or a word of peft's, which means all but the head
            return modules != "all-linear" and re.fullmatch(modules, _HEAD) is not None
        return modules is not None and _HEAD in modules

    if getattr(model_config, "lora_rank", 0) > 0 and has_head("target_modules") and not has_head("exclude_modules"):
        raise _refused(
            f"{_HEAD} without an adapter",
            f"target_modules={model_config.target_modules}",
            f"Leave {_HEAD} out of {_MODEL_KEY}.target_modules.",
        )


def _require_no_adapter(head: torch.nn.Module) -> None:
    # peft's layers hold the Linear as base_layer, and add to what it returns.
    if hasattr(head, "base_layer"):
        adapter = f"{type(head).__module__}.{type(head).__name__}"
        raise _refused("lm_head without an adapter", adapter, f"Leave lm_head out of {_MODEL_KEY}.target_modules.")


def _require_whole_sequences() -> None:
    # The forwards of verl 0.7 shift the labels themselves: at the end of a part, its own first word is taken for the next one's.
    from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size

    ranks = get_ulysses_sequence_parallel_world_size()
    if ranks > 1:
        raise _refused(
            "ulysses_sequence_parallel_size=1, since this verl shifts labels within a rank's part of a sequence",
            ranks,
            "Upgrade verl to 0.8 or later, or set use_fused_kernels=False.",
        )


def _refused(expected: str, got: str, remedy: str = "Set use_fused_kernels=False for this model.") -> ValueError:
    return key_error(f"{_KEY}={BACKEND}", expected, got, remedy)
