"""The way of a GPU: whole rows of logits, a tile of tokens at a time, whose gradients are kept for large products.

Every launch takes the host's time, and a product is fast when it is large. So a tile has all words at once, and the products that its
logits' gradients go into are those of a group of tiles: of all of them, where memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from maspo_ext.logits.groups import LogprobOptions, OfRows
from maspo_ext.logits.head import Gradients, Head, of_all, united
from maspo_ext.logits.parts import Rows


def results(head: Head, target: Tensor, options: LogprobOptions) -> Iterator[tuple[slice, Rows]]:
    """Of all tokens, a tile at a time."""
    tiles = head.tiles()
    memory = _new_rows(head, tiles[0].stop, head.dtype)
    for tile in tiles:
        logits = memory[: tile.stop - tile.start]
        yield tile, _logprob(head, head.hidden[tile], target[tile], options, logits)


def gradients(
    head: Head, target: Tensor, options: LogprobOptions, of_rows: OfRows, *, hidden: bool, weight: bool, bias: bool
) -> Gradients:
    """Those that are asked for, made on the way forward: as soon as a tile's rows are there, ``of_rows`` says what they weigh."""
    operand = head.finite_operand(slice(None), target == options.ignore_index)
    grads = head.new_gradients(head.gradient_dtype, hidden=False, weight=weight, bias=bias)
    if hidden:
        grads.hidden = operand.new_empty(operand.shape, dtype=head.gradient_dtype)
    memory = _memory(head, grads.weight)
    sums = grads
    if len(memory.groups) > 1 and weight and head.gradient_dtype != head.dtype:
        sums = replace(grads, weight=torch.empty_like(grads.weight, dtype=head.dtype))
    for tiles in memory.groups:
        group = of_all(tiles)
        kept = memory.kept[: group.stop - group.start]
        for tile in tiles:
            dlogits = kept[tile.start - group.start : tile.stop - group.start]
            logits = dlogits if memory.logits is None else memory.logits[: len(dlogits)]
            rows = _logprob(head, operand[tile], target[tile], options, logits)
            dlog_prob, dentropy = of_rows(tile, rows)
            torch.ops.maspo.logprob_backward_out(
                dlog_prob, dentropy, logits, target[tile], rows.entropy, rows.state, *options.of_block(head, head.all_words),
                grad=dlogits,
            )  # fmt: skip
        if hidden:
            head.hidden_gradient(kept, grads.hidden[group])
        head.head_gradients(kept, operand[group], head.all_words, sums, first=group.start == 0)
    if sums is not grads:
        grads.weight.copy_(sums.weight)
    return grads


def _logprob(head: Head, hidden: Tensor, target: Tensor, options: LogprobOptions, logits: Tensor) -> Rows:
    """Of ``hidden`` ``[n, H]``; leaves its logits in ``logits`` ``[n, V]``."""
    head.logits(logits, hidden, head.all_words)
    return Rows(*torch.ops.maspo.logprob_forward(logits, target, *options.of_block(head, head.all_words)))


class _Memory(NamedTuple):
    groups: list[list[slice]]  # of tiles
    kept: Tensor  # [n, V], the gradients of the logits of a group
    logits: Tensor | None  # [n, V], of a tile; None: where their gradients will be


def _memory(head: Head, grad_weight: Tensor | None) -> _Memory:
    """Of all tokens one group, if that takes no more than several do, whose gradients of logits keep to the budget.

    Several groups add up the weight's gradient in ``head.dtype``. Where its own dtype is narrower, those sums are memory that one
    group does without and may keep gradients of logits in. And such a gradient is written at the end: until then the logits of a
    tile lie in its memory.
    """
    tiles, room, logits = head.tiles(), head.budget, None
    tile, narrow = tiles[0].stop, grad_weight is not None and grad_weight.dtype != head.dtype
    if head.operand_dtype != head.dtype:
        size = tile * head.row * head.dtype.itemsize
        if narrow and size <= grad_weight.nbytes:
            logits = _rows(head, grad_weight.view(-1)[: size // grad_weight.itemsize].view(head.dtype))
        else:
            logits = _new_rows(head, tile, head.dtype)
            room -= size
    of_token = head.row * head.operand_dtype.itemsize
    sums = head.weight.numel() * head.dtype.itemsize if narrow else 0
    groups = [tiles] if head.tokens * of_token <= room + sums else united(tiles, room // of_token)
    return _Memory(groups, _new_rows(head, of_all(groups[0]).stop, head.operand_dtype), logits)


def _new_rows(head: Head, tokens: int, dtype: torch.dtype) -> Tensor:
    return _rows(head, head.weight.new_empty(tokens * head.row, dtype=dtype))


def _rows(head: Head, flat: Tensor) -> Tensor:
    """``[n, V]`` in this memory. A row begins where 16 bytes can be read at once, whichever it is: so that it is added up in one order."""
    return flat.view(-1, head.row)[:, : head.words]
