"""What a language model's head is given: the last hidden states, without those of the layers below and without logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maspo_ext.errors import message

USE_POLICY_LOSS_TRAINER = "Train with PolicyLossTrainer, which takes TRL's log-probabilities."


def before_head(model: torch.nn.Module, head: torch.nn.Linear, input_ids: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """What ``head`` is given in the model's own forward, so that what wraps it takes notice.

    Args:
        model: the language model, or what wraps it.
        head: its output embeddings.
        input_ids: ``[B, T]``.
        **inputs: further arguments of the forward.

    Returns:
        ``(hidden, outputs)``: ``[B, T, H]`` in the dtype of the head's weight, and what the forward returned, with the logits of
        the last position only, which it cannot leave out.

    Raises:
        ValueError: the forward does not call the head once with all positions.
    """
    given: list[Tensor] = []

    def keep(_head: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        given.append(arguments[0])
        return (arguments[0][..., -1:, :],)

    hook = head.register_forward_pre_hook(keep)
    try:
        outputs = model(input_ids=input_ids, use_cache=False, **inputs)
    finally:
        hook.remove()
    if [hidden.shape[:-1] for hidden in given] != [input_ids.shape]:
        calls = ", ".join(str(list(hidden.shape)) for hidden in given) or "no call"
        raise ValueError(
            message(
                "model",
                f"a forward that calls its head once, with hidden states [B, T, H] for tokens {list(input_ids.shape)}",
                f"{calls} ({type(model).__name__})",
                USE_POLICY_LOSS_TRAINER,
            )
        )
    # A bfloat16 model's norm may return float32 under autocast, and a Linear takes it there.
    return given[0].to(head.weight), outputs


@torch.no_grad()
def require_plain_head(model: torch.nn.Module) -> None:
    """Raise ValueError unless the logits are what the model's head makes of the last hidden states."""
    token, head = torch.zeros(1, 1, dtype=torch.long, device=model.device), model.get_output_embeddings()
    hidden, outputs = before_head(model, head, token)
    if not torch.allclose(outputs.logits.float(), head(hidden).float(), rtol=1e-2, atol=1e-3):
        raise ValueError(
            message(
                "model",
                "logits that are what the head makes of the last hidden states",
                f"others ({type(model).__name__} scales or bounds them)",
                USE_POLICY_LOSS_TRAINER,
            )
        )
