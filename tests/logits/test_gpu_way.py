"""The way of a GPU through the head, walked on a CPU: all but torch's products themselves."""

from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import maspo_ext
from maspo_ext.logits import head, kept_words, linear_loss
from maspo_ext.logits.head import Head

from ..op.cases import DEFAULT_METHODS, random_batch
from .cases import (
    HALF_DTYPES,
    HEAD,
    assert_close,
    assert_same_bits,
    composition,
    converted,
    loss_batch,
    random_head,
    reference,
    run_head,
    run_loss,
    tolerance,
)
from .test_linear_loss import FRONT_OPTIONS, batch_of, of_mode, packed

MM = torch.mm


class Product(NamedTuple):
    rows: int
    terms: int
    columns: int
    operands: torch.dtype
    result: torch.dtype


@pytest.fixture
def products(monkeypatch):
    """As a GPU adds up: operands of half precision, sums of float32. Notes every product."""
    seen = []

    def noted(a, b, out):
        assert a.dtype == b.dtype
        seen.append(Product(*a.shape, b.shape[1], a.dtype, out.dtype))
        wide = torch.promote_types(a.dtype, torch.float32)
        return a.to(wide) @ b.to(wide)

    def product(a, b, out):
        out.copy_(noted(a, b, out))

    def add_product(a, b, out):
        out += noted(a, b, out)

    def narrowed(*_, **__):
        raise AssertionError("a product that is rounded to half precision before it is added up")

    monkeypatch.setattr(Head, "on_gpu", True)
    monkeypatch.setattr(kept_words, "LEAST_WORDS", 64)
    monkeypatch.setattr(torch, "mm", narrowed)
    monkeypatch.setattr(head, "product", product)
    monkeypatch.setattr(head, "add_product", add_product)
    return seen


def on_cpu(function, *args, **keywords):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Head, "on_gpu", False)
        patch.setattr(torch, "mm", MM)
        return function(*args, **keywords)


WORDS, ROW = 301, 320  # a row's words, and where the next begins
# Bytes: of 128 tokens float32 logits and half-precision gradients.
BUDGET = 6 * ROW * 128


class Again(NamedTuple):
    """So many words, whose logits are made again for so many tokens at a time."""

    words: int
    tokens: list[int]


class Words(NamedTuple):
    """Numbers of words whose logits' gradients are kept in that of the weight, are kept beside it, or are made again."""

    in_gradient: list[int]
    beside: int
    again: list[Again]

    @property
    def blocks(self):
        return [Again(words, []) for words in (*self.in_gradient, self.beside)] + self.again


FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


class Case(NamedTuple):
    cols: int  # of six rows
    width: int
    budget: int | None
    tile: dict[torch.dtype, int]
    groups: dict[torch.dtype, list[int] | Words]  # tokens of each

    @property
    def tokens(self):
        return 6 * self.cols

    @property
    def sums(self):
        """Bytes of float32 sums of the weight's gradient."""
        return 4 * WORDS * self.width

    def budget_of(self, dtype):
        """Several groups that end in bfloat16 need sums."""
        groups = self.groups[dtype]
        has_sums = dtype == BFLOAT16 and isinstance(groups, list) and len(groups) > 1
        return self.budget + self.sums if has_sums else self.budget

    def tiles(self, dtype):
        full, rest = divmod(self.tokens, self.tile[dtype])
        return [self.tile[dtype]] * full + [rest] * (rest > 0)

    def products(self, dtype):
        """All of them, in their order."""
        groups, waiting = self.groups[dtype], BFLOAT16 if dtype == BFLOAT16 else FLOAT32
        logits = [Product(tile, self.width, WORDS, dtype, FLOAT32) for tile in self.tiles(dtype)]
        if isinstance(groups, Words):
            made = logits
            for words, again in groups.blocks:
                made += [Product(tokens, self.width, words, dtype, FLOAT32) for tokens in again]
                made.append(Product(self.tokens, words, self.width, dtype, FLOAT32))
                made.append(Product(words, self.tokens, self.width, dtype, dtype))
            return made
        made = []
        for tokens in groups:
            here = tokens
            while here > 0:
                made.append(logits.pop(0))
                here -= made[-1].rows
            # What is bfloat16 is rounded once: by the only product, or after the sums.
            made.append(Product(WORDS, tokens, self.width, dtype, waiting if len(groups) == 1 else FLOAT32))
            made.append(Product(tokens, WORDS, self.width, dtype, waiting))
        return made


def of_all_dtypes(value):
    return dict.fromkeys((BFLOAT16, FLOAT16, FLOAT32), value)


# A width of 288 has room for a tile's float32 logits in the bfloat16 gradient of the weight; one of 24 has not.
OF_A_TILE = [128] * 4 + [88]
CASES = {
    "all at once": Case(7, 24, None, of_all_dtypes(42), of_all_dtypes([42])),
    "one group": Case(
        100, 288, 600 * 2 * ROW, {BFLOAT16: 128, FLOAT16: 128, FLOAT32: 256},
        {BFLOAT16: [600], FLOAT16: [256, 256, 88], FLOAT32: [256, 256, 88]},
    ),
    "groups of tiles": Case(
        165, 288, BUDGET, of_all_dtypes(128), {BFLOAT16: [384, 384, 222], FLOAT16: [128] * 7 + [94], FLOAT32: [128] * 7 + [94]}
    ),
    "groups, logits beside": Case(100, 24, BUDGET, of_all_dtypes(128), of_all_dtypes(OF_A_TILE)),
    "words in the gradient": Case(
        33, 288, 100_000, {BFLOAT16: 50, FLOAT16: 50, FLOAT32: 66},
        {BFLOAT16: Words([64] * 4, 45, []), FLOAT16: [50, 50, 50, 48], FLOAT32: [66] * 3},
    ),
    "words in the budget": Case(
        42, 16, 264_000, of_all_dtypes(128),
        {BFLOAT16: Words([], 128, [Again(173, [128, 124])]), FLOAT16: [128, 124], FLOAT32: [128, 124]},
    ),
    "words again": Case(
        50, 16, 262_000, of_all_dtypes(128),
        {
            BFLOAT16: Words([], 64, [Again(128, [128, 128, 44]), Again(109, [128, 128, 44])]),
            FLOAT16: [128, 128, 44], FLOAT32: [128, 128, 44],
        },
    ),
    "words again, of more tokens": Case(
        45, 64, 290_000, of_all_dtypes(128),
        {
            BFLOAT16: Words([], 128, [Again(128, [128, 128, 14]), Again(45, [256, 14])]),
            FLOAT16: [128, 128, 14], FLOAT32: [128, 128, 14],
        },
    ),
    "least budget": Case(
        7, 24, 1, of_all_dtypes(14), {BFLOAT16: Words([64, 64], 64, [Again(109, [14] * 3)]), FLOAT16: [14] * 3, FLOAT32: [14] * 3}
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_half = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [FLOAT32, *HALF_DTYPES], ids=str)


def batch_for(case, dtype):
    return loss_batch(random_batch(6, case.cols, dtype=torch.float32), case.width, WORDS, dtype)


def assert_close_gradients(actual, expected, times=1):
    for got, true in zip(actual, expected, strict=True):
        assert got.dtype == true.dtype
        assert_close((got.double(),), (true.double(),), times * tolerance(got.dtype, "cuda"))


@every_half
@pytest.mark.parametrize("upstream", [1.0, 1e-7], ids=["", "a small loss scale"])
def test_linear_logprob(upstream, dtype, products):
    given = random_head((3, 7), 16, 300, dtype, bias=True)

    def scaled(function):
        return lambda **arguments: [value * upstream for value in function(**arguments)]

    actual = run_head(scaled(maspo_ext.linear_logprob), given, memory_budget=1)
    expected = run_head(scaled(reference.linear_logprob), converted(given, torch.float32))
    assert {(one.operands, one.result) for one in products} == {(dtype, torch.float32), (dtype, dtype)}
    assert [one.rows for one in products if one.columns == 300] == [11, 10]  # forward: all words
    assert_close(actual[:2], expected[:2], 1e-5)
    for got, true in zip(actual[2:], expected[2:], strict=True):
        assert got.dtype == dtype
        # float16 has no digits left below 6e-8; what can be told apart is.
        told_apart = 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        off_by = (got.double() - true.double()).abs().max()
        assert off_by <= tolerance(dtype, "cuda") * true.abs().max() + told_apart


@every_case
@every_dtype
def test_linear_loss(dtype, case, products):
    batch = batch_for(case, dtype)
    budget = case.budget_of(dtype)
    products.clear()
    actual = run_loss(maspo_ext.linear_loss, batch, memory_budget=budget)
    assert products == case.products(dtype)

    assert_same_bits(actual[:4], run_loss(composition, batch, memory_budget=budget)[:4])
    expected = on_cpu(run_loss, maspo_ext.linear_loss, batch)
    assert_close(actual[:4], expected[:4], 1e-5)
    assert_close_gradients(actual[4:], expected[4:])
    with torch.no_grad():
        loss, stats, *of_tokens = maspo_ext.linear_loss(**batch, memory_budget=budget)
    assert_same_bits((loss, stats.tensor, *of_tokens), actual[:4])


@every_case
@pytest.mark.parametrize("asked", [*((name,) for name in HEAD), ("hidden", "weight")], ids="+".join)
@every_half
def test_partial_gradients(dtype, asked, case, products):
    batch = batch_for(case, dtype)
    whole = run_loss(maspo_ext.linear_loss, batch, memory_budget=case.budget_of(dtype))
    grads = dict(zip(HEAD, whole[4:], strict=True))
    actual = run_loss(maspo_ext.linear_loss, batch, asked, memory_budget=case.budget_of(dtype))
    assert_same_bits(actual[:4], whole[:4])
    if "weight" in asked:
        assert_same_bits(actual[4:], [grads[name] for name in asked])
    else:
        assert_close_gradients(actual[4:], [grads[name] for name in asked])


@every_case
@every_dtype
def test_masked_garbage_changes_no_bit(dtype, case, products):
    batch = batch_for(case, dtype)
    masked = ~batch["response_mask"]
    clean = run_loss(maspo_ext.linear_loss, batch, memory_budget=case.budget_of(dtype))
    assert masked.any() and all(value.isfinite().all() for value in clean)
    batch["hidden"][masked], batch["target"][masked] = torch.nan, 2**40
    assert_same_bits(run_loss(maspo_ext.linear_loss, batch, memory_budget=case.budget_of(dtype)), clean)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("mode", ["maspo", "entropy_adv", "bapo"])
@every_half
def test_options(dtype, mode, layout, products):
    """All that a token's part of the loss may depend on, cut by tile."""
    method = DEFAULT_METHODS[mode]
    batch = batch_of(method, dtype, cols=12)
    if layout == "packed":
        _, batch, _ = packed(batch, [12, 1, 7, 10], 12)
    keywords = of_mode(method, **FRONT_OPTIONS) | {"temperature": 0.7, "memory_budget": 1}
    if mode != "bapo":
        keywords["entropy_coef"] = 0.3
    actual = run_loss(maspo_ext.linear_loss, batch, **keywords)
    expected = on_cpu(run_loss, maspo_ext.linear_loss, batch, **keywords)
    assert_close(actual[:4], expected[:4], 1e-5)
    assert_close_gradients(actual[4:], expected[4:])


@every_case
@every_dtype
def test_upstream_gradient(dtype, case, products):
    """In float32, and so the bits of a product with float32 numbers."""
    batch = batch_for(case, dtype)
    one = run_loss(maspo_ext.linear_loss, batch, memory_budget=case.budget_of(dtype))[4:]
    third = run_loss(maspo_ext.linear_loss, batch, upstream=1 / 3, memory_budget=case.budget_of(dtype))[4:]
    if dtype == BFLOAT16:
        assert_same_bits(third[:2], [(grad.float() * torch.tensor(1 / 3)).to(dtype) for grad in one[:2]])
    assert_close([3 * grad.double() for grad in third], one, 2 * tolerance(dtype, "cuda"))


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "words" not in name])
@pytest.mark.parametrize("size, upstream", [(1500, 1.0), (1500, 2.0**-6), (2.0**-17, 2.0**8)])
def test_float16_neither_underflows_nor_overflows(size, upstream, case, products):
    """Neither by a mean over many tokens before a loss scale, nor by a sum over them before the mean."""
    batch = batch_for(case, FLOAT16)
    batch["hidden"] = batch["hidden"].abs() * size
    batch["weight"] /= max(1, size)
    batch["target"][:] = 3
    actual = run_loss(maspo_ext.linear_loss, batch, upstream=upstream, loss_agg_mode="token-mean", memory_budget=case.budget_of(FLOAT16))
    expected = on_cpu(run_loss, maspo_ext.linear_loss, batch, upstream=upstream, loss_agg_mode="token-mean")
    for got, true in zip(actual[4:], expected[4:], strict=True):
        told_apart = 2 * torch.finfo(FLOAT16).smallest_normal * torch.finfo(FLOAT16).eps
        got, true = got.double(), true.double()
        assert true.isfinite().all()
        assert (got - true).abs().max() <= 2 * tolerance(FLOAT16, "cuda") * true.abs().max() + told_apart


def test_a_batch_without_tokens(products):
    for rows, cols in ((0, 5), (3, 0)):
        batch = loss_batch(random_batch(rows, cols, torch.float32), 8, 30, BFLOAT16)
        loss, stats, log_prob, entropy, *grads = run_loss(maspo_ext.linear_loss, batch)
        assert loss == 0 and log_prob.shape == entropy.shape == (rows, cols) and not stats.any()
        assert grads[0].shape == (rows, cols, 8) and not any(grad.any() for grad in grads)


class Made(TorchDispatchMode):
    """Bytes of the tensors that ``linear_loss`` makes without values."""

    EMPTY = ("new_empty", "new_zeros", "empty", "empty_like", "zeros_like")

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.maspo.linear_loss_forward.default:
            with self:
                return linear_loss._forward(*args, **(kwargs or {}))
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ in self.EMPTY:
            self.bytes.append(made.nbytes)
        return made


@every_case
@pytest.mark.parametrize("asked", [HEAD, ("hidden",)], ids="+".join)
@every_dtype
def test_memory(dtype, asked, case, products):
    """Beyond the gradients: what keeps the logits' gradients and a tile's logits, and sums of gradients where there are parts."""
    batch, budget, groups, width = batch_for(case, dtype), case.budget_of(dtype), case.groups[dtype], case.width
    with Made() as made:
        run_loss(maspo_ext.linear_loss, batch, asked, memory_budget=budget)
    tokens, weights = case.tokens, WORDS * width
    by_words = asked == HEAD and isinstance(groups, Words)
    waiting = 2 if dtype == BFLOAT16 else 4
    sizes = list(made.bytes)
    for count in [tokens * width] + [weights] * ("weight" in asked):
        sizes.remove(waiting * count)
        if dtype == FLOAT16:
            sizes.remove(2 * count)  # handed over by backward
    small = 16 * tokens + 4 * WORDS  # numbers of a token, the bias's gradient
    workspace = sorted((size for size in sizes if size > small), reverse=True)
    tile_logits = 4 * ROW * case.tile[dtype]
    budget = max(budget or head.DEFAULT_BUDGET["cuda"] + case.sums, 6 * ROW * case.tile[dtype])
    if by_words:
        sums = 4 * -(-tokens * width // 32) * 32  # of the hidden states' gradient, in the place of a tile's logits
        first = max(tile_logits, sums + 4 * 64 * case.tile[dtype])
        assert workspace == [first + 2 * tokens * -(-groups.beside // 64) * 64]
        if groups.beside > 64:  # else the least
            assert sum(workspace) + 128 * tokens <= budget
    elif asked == HEAD:
        in_gradient = dtype == FLOAT32 or (dtype == BFLOAT16 and tile_logits <= 2 * weights)
        kept = ROW * dtype.itemsize * groups[0]
        sums = [case.sums] * (len(groups) > 1 and dtype == BFLOAT16)
        assert workspace == sorted([kept] + [tile_logits] * (not in_gradient) + sums, reverse=True)
        assert sum(workspace) <= budget
    else:
        assert sum(workspace) <= budget


@pytest.mark.parametrize("hidden_too", [True, False])
@pytest.mark.parametrize("budget", [2**28, 2**29, 2**30])
@pytest.mark.parametrize(
    "tokens, width, words", [(8192, 3584, 152064), (32768, 3584, 152064), (1000, 4096, 128257), (8192, 896, 151936), (4096, 4096, 32000)]
)
def test_kept_words_keep_to_the_budget(tokens, width, words, budget, hidden_too, monkeypatch):
    """As far as at least a tile, 256 words and what is as large as the hidden states leave one; no place is taken twice."""
    monkeypatch.setattr(Head, "on_gpu", True)
    hidden, weight = (torch.empty(rows, width, dtype=BFLOAT16, device="meta") for rows in (tokens, words))
    of_head = Head(hidden, weight, None, budget)
    tile = of_head.tiles()[0].stop
    logits, sums, blocks = kept_words._memory(of_head, weight, tile, budget, hidden=hidden_too)
    memory = logits.untyped_storage()
    assert (sums is not None) == hidden_too
    of_hidden = 4 * tokens * width if hidden_too else 0
    first = max(tile * of_head.row * 4, of_hidden + tile * 4 * head.LEAST_WORDS)
    assert memory.nbytes() <= max(budget, first + tokens * 2 * head.LEAST_WORDS)
    assert logits.shape == (tile, words) and [block.words.start for block in blocks[1:]] == [block.words.stop for block in blocks[:-1]]
    assert (blocks[0].words.start, blocks[-1].words.stop) == (0, words)
    free = 0  # numbers of the weight's gradient from here on
    for block in blocks:
        dlogits, count = block.dlogits, block.words.stop - block.words.start
        start, row = dlogits.storage_offset(), dlogits.stride(0)
        assert dlogits.shape == (tokens, count) and row % 8 == start % 8 == 0
        if dlogits._base is weight:
            assert start >= max(free, block.words.stop * width) and start + tokens * row <= weight.numel()
            free = start + tokens * row
        else:
            if block.again is None:
                assert 2 * start == first
            else:
                begin, end = (block.again.storage_offset() + rows * row for rows in (0, len(block.again)))
                assert 4 * begin >= of_hidden and 2 * end <= start and block.again.shape[1] == count and len(block.again) >= tile
            assert 2 * (start + tokens * row) <= memory.nbytes()
    if (tokens, width, budget) == (8192, 3584, 2**30):
        assert sum(block.words.stop - block.words.start for block in blocks if block.again is None) > 0.71 * words
