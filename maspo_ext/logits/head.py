"""The head's matrix products, cut so that logits stay within a memory budget.

A product is done by torch's own BLAS. Logits, and the sums of the gradients, are of the arithmetic type: float32, also for
bfloat16 and float16, whose 8 or 11 bits are too few for the logits of confident tokens. On a GPU half-precision operands
stay as they are, since the tensor cores add up in float32; on a CPU they are cast block by block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maspo_ext.logits.logprob import arithmetic_dtype

# A product of few tokens wastes the machine: on a CPU those of 150,000 words are then of some 200, on a GPU of 512.
DEFAULT_BUDGET = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
# Words of a product on a CPU. MKL is faster on blocks of about this size than on a whole vocabulary at once, and on numbers of
# tokens that fill its registers.
CPU_WORDS = 2048
EVEN_TOKENS = 8
# A GPU's products are of whole tiles of its kernels, 128 rows each, where there are as many tokens, and never of fewer than 16.
GPU_TOKENS, LEAST_TOKENS = 128, 16
# Bytes of a tile's logits that are enough for a product to be fast, whatever the budget.
GPU_TILE = 320 * 2**20
# Rows of a block begin, and the block lies in the weight's gradient, where 16 bytes can be read at once.
EVEN_WORDS = 64
# A block of words is never smaller, whatever the budget: a product of fewer columns wastes the machine.
LEAST_WORDS = 256


@dataclass(frozen=True)
class Head:
    """``hidden @ weight.T + bias`` of flat ``hidden`` ``[N, H]``, ``weight`` ``[V, H]``, ``bias`` ``[V]`` or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    memory_budget: int | None

    @property
    def words(self) -> int:
        return self.weight.shape[0]

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    @property
    def size(self) -> int:
        return self.weight.shape[1]

    @property
    def on_gpu(self) -> bool:
        return self.weight.is_cuda

    @property
    def dtype(self) -> torch.dtype:
        """Of logits and sums."""
        return arithmetic_dtype(self.weight.dtype)

    @property
    def operand_dtype(self) -> torch.dtype:
        """Of what goes into a product."""
        return self.weight.dtype if self.on_gpu else self.dtype

    @property
    def gradient_dtype(self) -> torch.dtype:
        """In which a gradient of the hidden states and of the weight can wait for the scale that backward brings.

        bfloat16 has the exponents of float32, so that a GPU's product may round it at once; float16 would lose small numbers.
        """
        return self.operand_dtype if self.operand_dtype == torch.bfloat16 else self.dtype

    @property
    def budget(self) -> int:
        """In bytes."""
        return self.memory_budget or DEFAULT_BUDGET["cuda" if self.on_gpu else "cpu"]

    def room(self, sums: int) -> int:
        """Bytes for all that is held meanwhile. By default there is room for ``sums`` of so many bytes beside the budget."""
        return self.memory_budget or self.budget + sums

    @property
    def _logits_in_budget(self) -> int:
        """On a GPU beside their gradients, where these have memory of their own."""
        return self.budget // (self.dtype.itemsize + (0 if self.operand_dtype == self.dtype else self.operand_dtype.itemsize))

    @property
    def all_words(self) -> slice:
        return slice(0, self.words)

    @property
    def row(self) -> int:
        """Numbers from one row of logits to the next on a GPU."""
        return even_row(self.words)

    def new_rows(self, tokens: int, dtype: torch.dtype) -> Tensor:
        """Memory of a GPU for ``[tokens, V]``."""
        return rows_in(self.weight.new_empty(tokens * self.row, dtype=dtype), self.words)

    def tiles(self) -> list[slice]:
        """Tokens whose logits over the whole vocabulary fit, in slices of about one size.

        On the way forward a product is of one tile and of one of ``blocks()``, whichever op makes it: so that its bits are
        the same. On a GPU it is of a tile and all words.
        """
        if not self.on_gpu:
            return even_slices(self.tokens, max(1, self._logits_in_budget // self.words), EVEN_TOKENS)
        most = min(self._logits_in_budget, GPU_TILE // self.dtype.itemsize) // self.row
        if self.gradient_dtype != self.dtype:  # then they are to fit into the weight's gradient, too
            within = self.weight.numel() * self.gradient_dtype.itemsize // (self.row * self.dtype.itemsize)
            most = min(most, max(within, GPU_TOKENS))
        return even_slices(self.tokens, max(LEAST_TOKENS, most // GPU_TOKENS * GPU_TOKENS or most), GPU_TOKENS)

    def blocks(self, tokens: int | None = None) -> list[slice]:
        """Words whose logits of so many tokens fit; None: of as many as a hidden state has numbers."""
        most = max(LEAST_WORDS, self._logits_in_budget // max(1, self.size if tokens is None else tokens))
        return even_slices(self.words, most if self.on_gpu else min(most, CPU_WORDS), EVEN_WORDS)

    @property
    def group_tokens(self) -> int:
        """As many as may have the logits of one of ``blocks()``, and a copy of their hidden states."""
        return self._logits_in_budget // (self.blocks()[0].stop + self.size)

    def new_gradients(self, weight_dtype: torch.dtype, *, hidden: bool, weight: bool, bias: bool) -> Gradients:
        """Memory for those that are asked for, of the type of sums, but the weight's; nothing is in it."""
        contiguous = torch.contiguous_format
        return Gradients(
            self._new_hidden_gradient() if hidden else None,
            torch.empty_like(self.weight, dtype=weight_dtype, memory_format=contiguous) if weight else None,
            torch.empty_like(self.bias, dtype=self.dtype) if bias else None,
        )

    def _new_hidden_gradient(self) -> Tensor:
        """On a CPU the columns lie in memory one after the other: MKL adds up into that faster."""
        if self.on_gpu:
            return self.hidden.new_empty((self.tokens, self.size), dtype=self.dtype)
        return self.hidden.new_empty((self.size, self.tokens), dtype=self.dtype).t()

    def operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.operand_dtype)

    def finite_operand(self, tokens: slice, ignored: Tensor, out: Tensor | None = None) -> Tensor:
        """Hidden states as an operand, in ``out`` if given, 0 where ``ignored`` ``[n]``: 0 * NaN would reach the weight's gradient."""
        hidden = self.hidden[tokens]
        return self.operand(torch.where(ignored.unsqueeze(-1), hidden.new_zeros(()), hidden, out=out))

    def logits(self, out: Tensor, hidden: Tensor, words: slice, tiles: list[slice] | None = None) -> None:
        """Into ``out`` ``[n, words]`` those of ``hidden`` ``[n, H]``, an operand, a tile of it at a time."""
        weight = self.operand(self.weight[words]).t()
        for tile in [slice(0, len(hidden))] if tiles is None else tiles:
            product(hidden[tile], weight, out[tile])
        if self.bias is not None:
            out += self.bias[words]

    def gradients(self, dlogits: Tensor, hidden: Tensor, words: slice, grads: Gradients, first: bool) -> None:
        """Add to the gradients what ``dlogits`` ``[n, words]`` of ``hidden`` ``[n, H]`` give.

        That of the hidden states is set by the first words, those of weight and bias if ``first``.
        """
        if grads.hidden is not None:
            (add_product if words.start else product)(dlogits, self.operand(self.weight[words]), grads.hidden)
        self.head_gradients(dlogits, hidden, words, grads, first)

    def hidden_gradient(self, dlogits: Tensor, out: Tensor) -> None:
        """Into ``out`` that of the hidden states, of ``dlogits`` over all words."""
        product(dlogits, self.operand(self.weight), out)

    def head_gradients(self, dlogits: Tensor, hidden: Tensor, words: slice, grads: Gradients, first: bool) -> None:
        """Those of weight and bias alone."""
        if grads.weight is not None:
            (set_product if first else add_product)(dlogits.t(), hidden, grads.weight[words])
        if grads.bias is not None:
            of_bias = dlogits.sum(0, dtype=self.dtype)
            grads.bias[words] = of_bias if first else grads.bias[words] + of_bias


@dataclass
class Gradients:
    """Of the hidden states of the tokens at hand, of weight and bias; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def of_tokens(self, tokens: slice) -> Gradients:
        return replace(self, hidden=None if self.hidden is None else self.hidden[tokens])

    def results(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As an op returns them: an empty tensor, of the dtype and device of ``like``, for None."""
        grads = (self.hidden, self.weight, self.bias)
        return tuple(like.new_empty(0) if grad is None else grad.contiguous() for grad in grads)


def even_row(words: int) -> int:
    """Numbers from one row of so many words to the next on a GPU."""
    return -(-words // EVEN_WORDS) * EVEN_WORDS


def rows_in(flat: Tensor, words: int) -> Tensor:
    """``[n, words]`` in this memory. A row begins where 16 bytes can be read at once, whichever it is: so that it is added up in one order."""
    return flat.view(-1, even_row(words))[:, :words]


def even_slices(length: int, most: int, multiple: int = 1) -> list[slice]:
    """``range(length)`` in as few slices of at most ``most`` as there can be, at least one, all of about one length.

    That length is a multiple of ``multiple`` where there is one to be had.
    """
    if length == 0:
        return [slice(0, 0)]
    step = -(-length // -(-length // most))
    rounded = -(-step // multiple) * multiple
    step = rounded if rounded <= most else step
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def united(tiles: list[slice], most: int) -> list[list[slice]]:
    """As many side by side as have at most so many tokens, at least one."""
    together = max(1, most // max(1, tiles[0].stop))
    return [tiles[i : i + together] for i in range(0, len(tiles), together)]


def of_all(tiles: list[slice]) -> slice:
    return slice(tiles[0].start, tiles[-1].stop)


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b``, added up in the dtype of ``out``."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def set_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b``, rounded to the dtype of ``out``, which may be wider or narrower than the operands'."""
    if out.dtype.itemsize >= a.dtype.itemsize:
        product(a, b, out)
    else:
        # Into a tensor that is there: of the forms of mm, autocast leaves those alone.
        whole = a.new_empty(out.shape)
        torch.mm(a, b, out=whole)
        out.copy_(whole)


def add_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out += a @ b``, added up in the dtype of ``out``."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)  # a sum of another dtype than the operands: since torch 2.10
