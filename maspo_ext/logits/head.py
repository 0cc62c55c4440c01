"""The head's matrix products, cut so that logits stay within a memory budget.

A product is done by torch's own BLAS. Logits, and the sums of the gradients, are of the arithmetic type: float32, also for
bfloat16 and float16, whose 8 or 11 bits are too few for the logits of confident tokens. On a GPU half-precision operands
stay as they are, since the tensor cores add up in float32; on a CPU they are cast block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from maspo_ext.logits.logprob import arithmetic_dtype

# On a CPU the whole of an update then stays within 64 MiB beside its inputs and gradients; a GPU wants large products.
DEFAULT_BUDGET = {"cpu": 61 * 2**20, "cuda": 512 * 2**20}
# Words of a product on a CPU. MKL is faster on blocks of about this size than on a whole vocabulary at once, and on numbers of
# tokens that fill its registers.
CPU_WORDS = 2048
# The products of the gradients want larger ones, and need no memory for them unless the weight has to be cast.
GRADIENT_WORDS = 8 * CPU_WORDS
LONG_ROW = 16 * CPU_WORDS
EVEN_TOKENS = 8
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
    def _logits_in_budget(self) -> int:
        size = self.dtype.itemsize + (0 if self.operand_dtype == self.dtype else self.operand_dtype.itemsize)
        return (self.memory_budget or DEFAULT_BUDGET["cuda" if self.on_gpu else "cpu"]) // size

    def token_chunks(self) -> list[slice]:
        """Tokens whose logits fit, in chunks of about one size."""
        return even_slices(self.hidden.shape[0], max(1, self._logits_in_budget // self.words), EVEN_TOKENS)

    def word_chunks(self) -> list[slice]:
        """Words whose logits, of all tokens, fit."""
        tokens = max(1, self.hidden.shape[0])
        return even_slices(self.words, max(LEAST_WORDS, self._logits_in_budget // tokens))

    def new_hidden_gradient(self) -> Tensor:
        """Zeros, of the type of sums. On a CPU the columns lie in memory one after the other: MKL adds up into that faster."""
        tokens, size = self.hidden.shape
        if self.on_gpu:
            return self.hidden.new_zeros((tokens, size), dtype=self.dtype)
        return self.hidden.new_zeros((size, tokens), dtype=self.dtype).t()

    def new_logits(self, tokens: int, words: int) -> Tensor:
        return self.weight.new_empty((tokens, words), dtype=self.dtype)

    def new_dlogits(self, logits: Tensor) -> Tensor:
        """Where the gradient of ``logits`` goes: their own memory, but for a GPU's half-precision operands."""
        same = self.operand_dtype == self.dtype
        return logits if same else torch.empty_like(logits, dtype=self.operand_dtype)

    def operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.operand_dtype)

    def columns(self, of_words: Tensor, words: slice, most: int = CPU_WORDS) -> Iterator[tuple[slice, Tensor]]:
        """The parts of ``words`` that are multiplied at once, each with its columns of ``of_words`` ``[n, words]``."""
        step = words.stop - words.start if self.on_gpu else most
        for start in range(words.start, words.stop, step):
            stop = min(start + step, words.stop)
            yield slice(start, stop), of_words[:, start - words.start : stop - words.start]

    def logits(self, out: Tensor, hidden: Tensor, words: slice) -> None:
        """Into ``out`` ``[n, words]`` those of ``hidden`` ``[n, H]``, an operand."""
        # MKL is slow to write a part of each of many long rows: on a CPU a block is made word by word, and then laid there,
        # where that takes little more memory.
        by_word = None
        if not self.on_gpu and words.stop - words.start >= LONG_ROW:
            by_word, hidden = self.new_logits(CPU_WORDS, hidden.shape[0]), hidden.t().contiguous()
        for block, columns in self.columns(out, words):
            weight = self.operand(self.weight[block])
            if by_word is None:
                product(hidden, weight.t(), columns)
            else:
                product(weight, hidden, by_word[: len(weight)])
                columns.copy_(by_word[: len(weight)].t())
            if self.bias is not None:
                columns += self.bias[block]

    def gradients(self, dlogits: Tensor, hidden: Tensor, words: slice, grads: Gradients, first: bool) -> None:
        """Add to the gradients what ``dlogits`` ``[n, words]`` of ``hidden`` ``[n, H]`` give, those of weight and bias set if ``first``."""
        most = GRADIENT_WORDS if self.operand_dtype == self.weight.dtype else CPU_WORDS
        for block, columns in self.columns(dlogits, words, most):
            if grads.hidden is not None:
                add_product(columns, self.operand(self.weight[block]), grads.hidden)
            if grads.weight is not None:
                (set_product if first else add_product)(columns.t(), hidden, grads.weight[block])
            if grads.bias is not None:
                of_bias = columns.sum(0, dtype=self.dtype)
                grads.bias[block] = of_bias if first else grads.bias[block] + of_bias


@dataclass
class Gradients:
    """Of the hidden states of the tokens at hand, of weight and bias; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def results(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As an op returns them: an empty tensor, of the dtype and device of ``like``, for None."""
        grads = (self.hidden, self.weight, self.bias)
        return tuple(like.new_empty(0) if grad is None else grad.contiguous() for grad in grads)


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
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
