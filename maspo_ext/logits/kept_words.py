"""The way of a GPU where memory is short: gradients of the logits of some words are kept, the logits of the others made again.

A bfloat16 gradient of the weight is rounded once, so every part of it is one product over all tokens, and gradients of logits have to
wait for it. They do so by blocks of words. The first blocks lie in the memory of the weight's gradient, each so far behind its own part of
that gradient that it has been read before a part is written over it. The next lies beside the logits of a tile. Of the words that are
left nothing is kept: in their turn, in the memory that the former then have left, their logits are made again, which is a fourth
product, of so many words.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from maspo_ext.logits.groups import LogprobOptions, OfRows, RowGrads
from maspo_ext.logits.head import EVEN_WORDS, LEAST_WORDS, Gradients, Head, even_row, even_slices, rows_in
from maspo_ext.logits.parts import Rows

# One of so many parts of the weight's gradient stays free, for the first block's part. The other blocks are as large as those before them allow.
_PARTS = 16


class _Block(NamedTuple):
    words: slice
    dlogits: Tensor  # [N, words]
    again: Tensor | None  # flat, for the logits of a tile; None: dlogits is kept


def gradients(
    head: Head, operand: Tensor, target: Tensor, options: LogprobOptions, of_rows: OfRows, grads: Gradients, *, hidden: bool
) -> Gradients:
    """As ``whole_rows.gradients`` makes them of ``operand`` ``[N, H]``, finite. ``grads`` has memory for those of weight and bias."""
    tiles = head.tiles()
    room = head.room(0) - operand.nbytes
    if hidden:
        grads.hidden = operand.new_zeros(operand.shape, dtype=head.dtype)
        room -= grads.hidden.nbytes
    whole, blocks = _memory(head, grads.weight, tiles[0].stop, room)
    of_tiles: list[tuple[Rows, RowGrads]] = []
    for tile in tiles:
        logits = whole[: tile.stop - tile.start]
        head.logits(logits, operand[tile], head.all_words)
        rows = options.rows(head, head.all_words, logits, target[tile])
        row_grads = of_rows(tile, rows)
        for words, dlogits, again in blocks:
            if again is None:
                options.gradient(head, words, logits[:, words], target[tile], rows, row_grads, dlogits[tile])
        of_tiles.append((rows, row_grads))
    for words, dlogits, again in blocks:
        if again is not None:
            for tile, (rows, row_grads) in zip(tiles, of_tiles, strict=True):
                logits = _rows(again, tile.stop - tile.start, words)
                head.logits(logits, operand[tile], words)
                options.gradient(head, words, logits, target[tile], rows, row_grads, dlogits[tile])
        head.gradients(dlogits, operand, words, grads, first=True)
    if hidden:
        grads.hidden = grads.hidden.to(head.gradient_dtype)
    return grads


def _memory(head: Head, grad_weight: Tensor, tile: int, room: int) -> tuple[Tensor, list[_Block]]:
    """For the logits of a tile, ``[tile, V]``, and blocks of all words, in their order: all in ``grad_weight`` and ``room`` bytes."""
    blocks = _in_gradient(head, grad_weight.view(-1))
    done = blocks[-1].words.stop if blocks else 0
    left, size = head.words - done, head.operand_dtype.itemsize
    wide = head.dtype.itemsize // size  # an operand's numbers take the place of one logit
    of_tile = wide * tile * head.row
    most = max(LEAST_WORDS, _even_within((room // size - of_tile) // head.tokens))
    beside = min(most, left)
    memory = head.weight.new_empty(of_tile + head.tokens * even_row(beside), dtype=head.operand_dtype)
    blocks.append(_Block(slice(done, done + beside), _rows(memory[of_tile:], head.tokens, slice(0, beside)), None))
    done, left = done + beside, left - beside
    for part in even_slices(left, _even_within(len(memory) // (head.tokens + wide * tile)), EVEN_WORDS) if left else ():
        logits = wide * tile * even_row(part.stop - part.start)
        words = slice(done + part.start, done + part.stop)
        blocks.append(_Block(words, _rows(memory[logits:], head.tokens, words), memory[:logits].view(head.dtype)))
    return rows_in(memory[:of_tile].view(head.dtype), head.words), blocks


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
