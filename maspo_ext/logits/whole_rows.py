"""The way of a GPU: whole rows of logits, a tile of tokens at a time, whose gradients are kept for large products.

Every launch takes the host's time, and a product is fast when it is large. So a tile has all words at once, and the products that its
logits' gradients go into are those of a group of tiles: of all of them, where memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from maspo_ext.logits import kept_words
from maspo_ext.logits.groups import LogprobOptions, TokensLoss
from maspo_ext.logits.head import Gradients, Head, of_all, rows_in, united
from maspo_ext.logits.parts import Rows


def results(head: Head, target: Tensor, options: LogprobOptions) -> Iterator[tuple[slice, Rows]]:
    """Of all tokens, a tile at a time."""
    tiles = head.tiles()
    memory = head.new_rows(tiles[0].stop, head.dtype)
    for tile in tiles:
        logits = memory[: tile.stop - tile.start]
        head.logits(logits, head.hidden[tile], head.all_words)
        yield tile, options.rows(head, head.all_words, logits, target[tile])


def gradients(
    head: Head, loss: Callable[[], TokensLoss], options: LogprobOptions, *, hidden: bool, weight: bool, bias: bool
) -> Gradients:
    """Those that are asked for, made on the way forward: as soon as a tile's rows are there, ``loss()`` says what they weigh.

    It is called when the first logits are on their way: until then a GPU waits for the host.
    """
    grads = head.new_gradients(head.gradient_dtype, hidden=False, weight=weight, bias=bias)
    if hidden:
        grads.hidden = head.hidden.new_empty(head.hidden.shape, dtype=head.gradient_dtype)
    memory = _memory(head, grads.weight)
    if memory is None:
        return kept_words.gradients(head, loss, options, grads)
    # Where the gradient of the hidden states will be, their operand lies until it has been read for the last time.
    place = grads.hidden if head.operand_dtype == head.gradient_dtype else None
    sums = grads
    if len(memory.groups) > 1 and weight and head.gradient_dtype != head.dtype:
        sums = replace(grads, weight=torch.empty_like(grads.weight, dtype=head.dtype))
    for tiles in memory.groups:
        group = of_all(tiles)
        kept = memory.kept[: group.stop - group.start]
        for tile in tiles:
            dlogits = kept[tile.start - group.start : tile.stop - group.start]
            logits = dlogits if memory.logits is None else memory.logits[: len(dlogits)]
            head.logits(logits, head.hidden[tile], head.all_words)
            target = loss().target[tile]
            rows = options.rows(head, head.all_words, logits, target)
            options.gradient(head, head.all_words, logits, target, rows, loss().derivatives(tile, rows), dlogits)
        operand = head.hidden[group]
        if weight:
            ignored = loss().target[group] == options.ignore_index
            operand = head.finite_operand(group, ignored, None if place is None else place[group])
        head.head_gradients(kept, operand, head.all_words, sums, first=group.start == 0)
        if hidden:
            head.hidden_gradient(kept, grads.hidden[group])
    if sums is not grads:
        grads.weight.copy_(sums.weight)
    return grads


class _Memory(NamedTuple):
    groups: list[list[slice]]  # of tiles
    kept: Tensor  # [n, V], the gradients of the logits of a group
    logits: Tensor | None  # [n, V], of a tile; None: where their gradients will be


def _memory(head: Head, grad_weight: Tensor | None) -> _Memory | None:
    """Of all tokens one group, if its gradients of logits keep to the budget, else several. None: the budget is less than these take.

    Several groups add up the weight's gradient in ``head.dtype``. Where its own dtype is narrower, those sums are memory that one
    group does without. And such a gradient is written at the end: until then the logits of a tile lie in its memory.
    """
    tiles, logits = head.tiles(), None
    tile, narrow = tiles[0].stop, grad_weight is not None and grad_weight.dtype != head.dtype
    sums = head.weight.numel() * head.dtype.itemsize if narrow else 0
    room = head.room(sums)
    of_token = head.row * head.operand_dtype.itemsize
    beside = 0
    if head.operand_dtype != head.dtype:
        beside = tile * head.row * head.dtype.itemsize
        if narrow and beside <= grad_weight.nbytes:
            logits = rows_in(grad_weight.view(-1)[: beside // grad_weight.itemsize].view(head.dtype), head.words)
            beside = 0
    together = room - beside
    if head.tokens * of_token <= together:
        groups = [tiles]
    elif narrow and together - sums < tile * of_token:
        return None
    else:
        groups = united(tiles, (together - sums) // of_token)
    if beside:
        logits = head.new_rows(tile, head.dtype)
    return _Memory(groups, head.new_rows(of_all(groups[0]).stop, head.operand_dtype), logits)
