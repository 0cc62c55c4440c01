"""The way of a GPU where memory is short: gradients of the logits of some words are kept, the logits of the others made again.

A bfloat16 gradient of the weight is rounded once, so every part of it is one product over all tokens, and gradients of logits have to
wait for it. They do so by blocks of words. The first blocks lie in the memory of the weight's gradient, each so far behind its own part of
that gradient that it has been read before a part is written over it. The next lies beside the logits of a tile, whose place the float32
sums of the hidden states' gradient take when the tiles are done. Of the words that are left nothing is kept: in their turn, in the memory
that the former then have left, their logits are made again, which is a fourth product, of so many words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from maspo_ext.logits.groups import LogprobOptions, RowGrads, TokensLoss
from maspo_ext.logits.head import EVEN_WORDS, GPU_TOKENS, LEAST_WORDS, Gradients, Head, even_row, even_slices, rows_in
from maspo_ext.logits.parts import Rows

# Bytes of a token's results and derivatives, and of what they are made of: they are held beside the logits.
_OF_TOKEN = 128
# One of so many parts of the weight's gradient stays free, for the first block's part. The other blocks are as large as those before them allow.
_PARTS = 16

_PerToken = TypeVar("_PerToken", Rows, RowGrads)


class _Block(NamedTuple):
    words: slice
    dlogits: Tensor  # [N, words]
    again: Tensor | None  # [n, words], for the logits of so many tokens at a time; None: dlogits is kept


class _Memory(NamedTuple):
    logits: Tensor  # [n, V], of a tile
    hidden: Tensor | None  # [N, H], sums of the hidden states' gradient, when the tiles are done; None: nobody asks for it
    blocks: list[_Block]  # of all words, in their order


def gradients(head: Head, loss: Callable[[], TokensLoss], options: LogprobOptions, grads: Gradients) -> Gradients:
    """As ``whole_rows.gradients`` makes them; ``grads`` has memory for all that are asked for."""
    tiles = head.tiles()
    # The operand of the products lies where the gradient of the hidden states will be.
    room = head.room(0) - _OF_TOKEN * head.tokens - (0 if grads.hidden is not None else head.hidden.nbytes)
    memory = _memory(head, grads.weight, tiles[0].stop, room, hidden=grads.hidden is not None)
    kept = [block for block in memory.blocks if block.again is None]
    of_kept = slice(0, kept[-1].words.stop)
    of_tiles: list[tuple[Rows, RowGrads]] = []
    for tile in tiles:
        logits = memory.logits[: tile.stop - tile.start]
        head.logits(logits, head.hidden[tile], head.all_words)
        target = loss().target[tile]
        rows = options.rows(head, head.all_words, logits, target)
        row_grads = loss().derivatives(tile, rows)
        outs = (block.dlogits[tile] for block in kept)
        options.gradient(head, of_kept, logits[:, of_kept], target, rows, row_grads, *outs)
        of_tiles.append((rows, row_grads))
    rows, row_grads = map(_joined, zip(*of_tiles, strict=True))
    target = loss().target
    operand = head.finite_operand(slice(None), target == options.ignore_index, grads.hidden)
    result, grads.hidden = grads.hidden, memory.hidden
    for words, dlogits, again in memory.blocks:
        if again is not None:
            for some in even_slices(head.tokens, len(again), GPU_TOKENS):
                logits = again[: some.stop - some.start]
                head.logits(logits, operand[some], words)
                options.gradient(head, words, logits, target[some], _of(rows, some), _of(row_grads, some), dlogits[some])
        head.gradients(dlogits, operand, words, grads, first=True)
    grads.hidden = None if result is None else result.copy_(grads.hidden)
    return grads


def _joined(parts: Iterable[_PerToken]) -> _PerToken:
    first, *others = parts
    return type(first)(*(None if values[0] is None else torch.cat(values) for values in zip(first, *others, strict=True)))


def _of(values: _PerToken, tokens: slice) -> _PerToken:
    return type(values)(*(None if value is None else value[tokens] for value in values))


def _memory(head: Head, grad_weight: Tensor, tile: int, room: int, *, hidden: bool) -> _Memory:
    """All in ``grad_weight`` and ``room`` bytes: as many words are kept as these allow."""
    blocks = _in_gradient(head, grad_weight.view(-1))
    done = blocks[-1].words.stop if blocks else 0
    wide = _wide(head)
    sums = even_row(wide * head.tokens * head.size) if hidden else 0
    first = max(wide * tile * head.row, sums + wide * tile * LEAST_WORDS)
    most = max(LEAST_WORDS, _even_within((room // head.operand_dtype.itemsize - first) // head.tokens))
    beside = slice(done, min(done + most, head.words))
    of_beside = head.tokens * even_row(beside.stop - done)
    memory = head.weight.new_empty(first + of_beside, dtype=head.operand_dtype)
    blocks.append(_Block(beside, _rows(memory[first:], head.tokens, beside), None))
    if beside.stop < head.words:
        blocks += _made_again(head, beside.stop, memory[sums:], tile)
    logits = rows_in(memory[: wide * tile * head.row].view(head.dtype), head.words)
    of_hidden = memory[: wide * head.tokens * head.size].view(head.dtype).view(head.tokens, head.size) if hidden else None
    return _Memory(logits, of_hidden, blocks)


def _wide(head: Head) -> int:
    """Numbers of an operand in whose place one logit lies, or one sum."""
    return head.dtype.itemsize // head.operand_dtype.itemsize


def _made_again(head: Head, first_word: int, free: Tensor, tile: int) -> Iterable[_Block]:
    """Blocks of the words from ``first_word`` on, each in all of ``free``: as few as can be, of logits of as many tokens, at least a tile's."""
    wide = _wide(head)
    most = _even_within(len(free) // (head.tokens + wide * tile))
    for part in even_slices(head.words - first_word, most, EVEN_WORDS):
        words = slice(first_word + part.start, first_word + part.stop)
        row = even_row(words.stop - words.start)
        tokens = min(head.tokens, (len(free) // row - head.tokens) // wide)
        tokens = max(tile, tokens // GPU_TOKENS * GPU_TOKENS)
        logits = _rows(free[: wide * tokens * row].view(head.dtype), tokens, words)
        yield _Block(words, _rows(free[wide * tokens * row :], head.tokens, words), logits)


def _in_gradient(head: Head, flat: Tensor) -> list[_Block]:
    """Those that fit into ``flat``, the weight's gradient, of the dtype of the logits' gradients.

    A block of the words from ``word`` on becomes the part of the gradient from ``word * H`` on, up to where the block lies at most.
    """
    blocks: list[_Block] = []
    free = max(LEAST_WORDS, even_row(-(-head.words // _PARTS)))
    word = end = 0
    while True:
        place = max(end, (word + free) * head.size)
        count = _even_within(min(place // head.size - word, (len(flat) - place) // head.tokens, head.words - word))
        if count < LEAST_WORDS:
            return blocks
        end = place + head.tokens * count
        blocks.append(_Block(slice(word, word + count), flat[place:end].view(head.tokens, count), None))
        word += count


def _rows(memory: Tensor, tokens: int, words: slice) -> Tensor:
    """``[tokens, words]`` at the beginning of flat ``memory``."""
    count = words.stop - words.start
    return rows_in(memory[: tokens * even_row(count)], count)


def _even_within(words: int) -> int:
    return words // EVEN_WORDS * EVEN_WORDS
