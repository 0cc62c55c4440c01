"""What verl's ``ppo_loss`` is given and the losses in its registry are not: the entropy, the data-parallel group."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .ratio_clip import ACTOR_KEY


class _Call(NamedTuple):
    """The arguments of the ``ppo_loss`` that is running."""

    model_output: Any
    data: Any
    dp_group: Any


# The remedy where another function than ppo_loss calls the loss.
_ENGINE_WORKERS = "Train with verl's engine workers (in verl 0.7 trainer.use_legacy_worker_impl=disable)"
_call: ContextVar[_Call | None] = ContextVar("maspo_ext_ppo_loss_call", default=None)


def wrap_ppo_loss(losses: ModuleType) -> None:
    """Have ``verl.workers.utils.losses.ppo_loss`` leave its arguments here while it runs; it does what it did."""
    ppo_loss = losses.ppo_loss

    @functools.wraps(ppo_loss)  # its name too: it is sent to the workers by name
    def with_model_output(config, model_output, data, dp_group=None):
        token = _call.set(_Call(model_output, data, dp_group))
        try:
            return ppo_loss(config, model_output, data, dp_group)
        finally:
            _call.reset(token)

    # Where no plugin was loaded, verl's workers import the function by name before they meet our config class.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("ppo_loss") is ppo_loss:
            module.ppo_loss = with_model_output


def entropy() -> torch.Tensor:
    """The policy's entropy of each token of the running ``ppo_loss``: ``[B, T]``, nats, without gradient.

    Raises:
        ValueError: the model did not compute it, or verl calls the loss from elsewhere.
    """
    # Not above: importing the module costs seconds, and this one is loaded with verl.
    from verl.workers.utils import losses

    call = _call.get()
    if call is None:
        raise ValueError(
            "maspo_ext: entropy: expected the one in the model's output, got a loss called from elsewhere than "
            f"verl.workers.utils.losses.ppo_loss. {_ENGINE_WORKERS}, or a loss that needs no entropy."
        )
    nested = call.model_output.get("entropy")
    if nested is None:
        raise missing_entropy()
    # The function that ppo_loss itself takes, which is private in verl 0.7.0 and has another namesake there.
    padded = getattr(losses, "no_padding_2_padding", None) or losses._slice_response_from_unpad_output
    return padded(nested, call.data).detach()


def missing_entropy() -> ValueError:
    """The error where the entropy is needed, and the run does not compute it."""
    return ValueError(
        f"maspo_ext: {ACTOR_KEY}.calculate_entropy: expected True, since the loss shapes the advantages by the "
        f"entropy, got False. Set {ACTOR_KEY}.calculate_entropy=True."
    )


def all_reduce_sums(dp_size: int | None) -> Callable[[torch.Tensor], Any] | None:
    """What adds a tensor over the data-parallel ranks, in place; None where there is one rank.

    To be called by every rank once per micro-batch. verl gives all ranks the same number of them:
    ``prepare_micro_batches`` cuts equal shares by equal sizes, or takes the largest number of any rank
    (``same_micro_num_in_dp``).

    Args:
        dp_size: the number of these ranks; None where verl does not say, as in the workers that verl 0.7 has by default.

    Raises:
        ValueError: there is no group of ``dp_size`` ranks, or their number is not known and there is more than one rank.
    """
    ranks = _ranks()
    if (dp_size or ranks) == 1:
        return None
    call = _call.get()
    group = None if call is None else call.dp_group
    if group is None and ranks != dp_size:
        raise ValueError(
            f"maspo_ext: dp_group: expected verl's group of {dp_size or 'the'} data-parallel ranks, got None and a default "
            f"group of {ranks}. {_ENGINE_WORKERS}, or with a ratio_mode other than bapo."
        )
    return functools.partial(torch.distributed.all_reduce, group=group)


def _ranks() -> int:
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1
