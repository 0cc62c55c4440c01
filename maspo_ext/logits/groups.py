"""The way of a CPU: groups of tokens, whose logits go block of words after block of words, or all blocks in one place, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from maspo_ext.logits.head import Gradients, Head, of_all, united
from maspo_ext.logits.parts import PartsInTurn, Rows


class RowGrads(NamedTuple):
    dlog_prob: Tensor  # d loss / d log_prob
    dentropy: Tensor | None  # d loss / d entropy


class LogprobOptions(NamedTuple):
    """How logits are read; ``first_word``, ``all_words``: the head's place in a larger vocabulary."""

    temperature: float
    ignore_index: int
    first_word: int = 0
    all_words: int | None = None

    def rows(self, head: Head, words: slice, logits: Tensor, target: Tensor) -> Rows:
        """Of ``logits`` ``[n, words]`` of a block of the head's words and ``target`` ``[n]``."""
        return Rows(*torch.ops.maspo.logprob_forward(logits, target, *self._of_block(head, words)))

    def gradient(
        self, head: Head, words: slice, logits: Tensor, target: Tensor, rows: Rows, row_grads: RowGrads, *outs: Tensor
    ) -> None:
        """Into ``outs``, one for each block of ``words``, that of ``logits``, from the rows' gradients. ``rows`` are those of all words."""
        arguments = (*row_grads, logits, target, rows.entropy, rows.state, *self._of_block(head, words))
        if len(outs) == 1:  # which may be the logits
            torch.ops.maspo.logprob_backward_out(*arguments, grad=outs[0])
        else:
            torch.ops.maspo.logprob_backward_blocks_out(*arguments, grads=list(outs))

    def _of_block(self, head: Head, words: slice) -> tuple[float, int, int, int]:
        return self.temperature, self.ignore_index, self.first_word + words.start, self.all_words or head.words


class BlockMemory(NamedTuple):
    """``flat``, in which a block begins ``per_word`` numbers further on for each word before it; 0: where all begin."""

    flat: Tensor
    per_word: int

    def block(self, tokens: int, words: slice) -> Tensor:
        """``[tokens, words]``"""
        start, count = words.start * self.per_word, words.stop - words.start
        return self.flat[start : start + tokens * count].view(tokens, count)


class Group(NamedTuple):
    """Tokens one after the other, whose logits are there at once, or at least a block of them."""

    tiles: list[slice]  # of all tokens
    blocks: list[slice]  # of all words
    logits: BlockMemory
    in_gradient: bool = False  # of the weight: that is where the logits lie

    @property
    def tokens(self) -> slice:
        return of_all(self.tiles)

    def logprob(self, head: Head, hidden: Tensor, target: Tensor, options: LogprobOptions) -> Rows:
        """Of ``hidden`` ``[n, H]``, an operand, and ``target`` ``[n]``, this group's; leaves its logits in their memory."""
        tiles = [slice(tile.start - self.tokens.start, tile.stop - self.tokens.start) for tile in self.tiles]
        parts = PartsInTurn(target, options.temperature, options.ignore_index)
        for words in self.blocks:
            logits = self.logits.block(len(target), words)
            head.logits(logits, hidden, words, tiles)
            part = options.rows(head, words, logits, target)
            if len(self.blocks) == 1:
                return part
            parts.add(part, options.first_word + words.start, words.stop - words.start)
        return parts.rows()

    def gradients(
        self, head: Head, hidden: Tensor, target: Tensor, options: LogprobOptions, rows: Rows, row_grads: RowGrads,
        grads: Gradients, *, first: bool, again: bool = False,
    ) -> None:  # fmt: skip
        """Adds what this group gives to ``grads``, sets those of weight and bias if ``first``. ``again``: makes the logits again."""
        in_place = not self.in_gradient and head.operand_dtype == head.dtype
        of_gradient = self.logits if in_place else _one_block(head, len(target), self.blocks, head.operand_dtype)
        for words in self.blocks:
            logits, dlogits = (memory.block(len(target), words) for memory in (self.logits, of_gradient))
            if again:
                head.logits(logits, hidden, words, self.tiles)
            options.gradient(head, words, logits, target, rows, row_grads, dlogits)
            head.gradients(dlogits, hidden, words, grads, first)


class TokensLoss(Protocol):
    """What the gradients are of: ``maspo_ext.logits.loss_of_tokens.LossOfTokens``."""

    target: Tensor  # [N]

    def derivatives(self, tokens: slice, rows: Rows) -> RowGrads: ...


def results(head: Head, target: Tensor, options: LogprobOptions) -> Iterator[tuple[slice, Rows]]:
    """Of all tokens, some at a time."""
    for group in _groups_for_results(head):
        tokens = group.tokens
        yield tokens, group.logprob(head, head.operand(head.hidden[tokens]), target[tokens], options)


def gradients(
    head: Head, loss: Callable[[], TokensLoss], options: LogprobOptions, *, hidden: bool, weight: bool, bias: bool
) -> Gradients:
    """Those that are asked for, made on the way forward: as soon as some tokens' rows are there, ``loss()`` says what they weigh."""
    of_tokens = loss()
    grads = head.new_gradients(head.gradient_dtype, hidden=hidden, weight=weight, bias=bias)
    for group in _groups_for_gradients(head, grads.weight):
        tokens = group.tokens
        of_group = of_tokens.target[tokens]
        operand = head.finite_operand(tokens, of_group == options.ignore_index)
        rows = group.logprob(head, operand, of_group, options)
        group.gradients(
            head, operand, of_group, options, rows, of_tokens.derivatives(tokens, rows), grads.of_tokens(tokens),
            first=tokens.start == 0,
        )  # fmt: skip
    return grads


def _groups_for_results(head: Head) -> list[Group]:
    """Logits that nobody needs again: every block goes where the one before was."""
    groups, blocks = united(head.tiles(), head.group_tokens), head.blocks()
    buffer = _one_block(head, of_all(groups[0]).stop, blocks)
    return [Group(tiles, blocks, buffer) for tiles in groups]


def _groups_for_gradients(head: Head, grad_weight: Tensor | None) -> Iterator[Group]:
    """Logits that stay until they have become their gradient.

    Those of the first tokens lie in the memory of the weight's gradient, before it is there: block by block it takes the
    place of the logits, which are fewer as long as there are no more tokens than a hidden state has numbers. The other
    tokens' logits have memory of their own, a tile at a time.
    """
    tiles, blocks = head.tiles(), head.blocks()
    most = min(head.size, head.group_tokens)
    if grad_weight is not None and tiles[0].stop <= most:
        inside = united(tiles, most)[0]
        tiles = tiles[len(inside) :]
        yield Group(inside, blocks, BlockMemory(grad_weight.view(-1), head.size), in_gradient=True)
    if tiles:
        tokens = tiles[0].stop - tiles[0].start
        buffer = BlockMemory(head.weight.new_empty(tokens * head.words, dtype=head.dtype), tokens)
        yield from (Group([tile], blocks, buffer) for tile in tiles)


def group_of_all(head: Head) -> Group:
    """All tokens, and as many words at a time as then fit."""
    blocks = head.blocks(head.tokens)
    return Group([slice(0, head.tokens)], blocks, _one_block(head, head.tokens, blocks))


def _one_block(head: Head, tokens: int, blocks: list[slice], dtype: torch.dtype | None = None) -> BlockMemory:
    return BlockMemory(head.weight.new_empty(tokens * blocks[0].stop, dtype=dtype or head.dtype), 0)

