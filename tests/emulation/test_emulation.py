"""The CUDA kernels' own source, run on the CPU by an emulation of CUDA's threads (``cuda_runtime.h`` in this folder).

Random batches and rows through the kernels and the CPU engine, under sanitizers and over many orders of threads and blocks; the
golden vectors; and faults planted in copies of the kernels, each of which the net has to catch.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import maspo_ext

from ..logits.cases import confident_rows, truth
from ..op.cases import WRONG_CU_SEQLENS
from ..op.golden import METRICS, NAMES, Golden
from .build import CSRC, PROGRAMS, Builder, in_parallel

CASES = {"plain": 200, "gpu arithmetic": 200, "address": 100, "thread": 12}


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulation")
    return {build: Builder(folder, build) for build in CASES}


def run_program(program: Path, count: int, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), "0", str(count), *arguments]
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    completed = subprocess.run(command, **options)
    if "unexpected memory mapping" in completed.stderr:
        # A ThreadSanitizer older than the kernel: it needs the addresses where they were before they were randomised so far.
        completed = subprocess.run(["/usr/bin/setarch", "-R", *command], **options)
    return completed


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    "build",
    [
        "plain", "gpu arithmetic", pytest.param("address", marks=pytest.mark.slow), pytest.param("thread", marks=pytest.mark.slow)
    ],
)  # fmt: skip
def test_random_cases_agree_with_the_cpu_engine(build, name, builders):
    """Each case has its own batch and its own order of threads and blocks."""
    completed = run_program(builders[build].program(name), CASES[build])
    assert completed.returncode == 0, completed.stderr[-4000:]
    assert f"{CASES[build]} cases agree" in completed.stdout


# ---- golden vectors


@pytest.fixture(scope="module")
def emulated(builders):
    (path,) = builders["gpu arithmetic"].module().glob("emulated_kernels*.so")
    spec = importlib.util.spec_from_file_location("emulated_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(case: Golden, dtype: torch.dtype) -> dict:
    config = case.config()
    batch = {name: tensor.numpy() for name, tensor in case.batch(dtype, "cpu").items()}
    is_bapo = isinstance(config, maspo_ext.BapoConfig)
    alpha, kappa = config.entropy_adv() or (0.0, 2.0)
    search = (
        config.candidates | config.search()
        if is_bapo
        else {"lower": [], "upper": [], "target": 0.0, "eps": 0.0, "upper_first": False}
    )
    counts = {"dp_size": 1, "batch_num_tokens": -1, "global_batch_size": -1, "loss_scale_factor": -1} | case.aggregation
    return {
        "rollout_is_weights": None,
        "entropy": None,
        **batch,
        **search,
        **counts,
        "method": config.method,
        "hyper": config.kernel_hyper(),
        "clip_ratio_c": config.clip_ratio_c if config.reports_dual_clip else float("inf"),
        "dual_clip": config.dual_clip,
        "entropy_alpha": alpha,
        "entropy_kappa": kappa,
    }


@pytest.mark.parametrize("name", [name for name in NAMES if not Golden(name).rejected])
def test_golden(name, emulated):
    """In float64 and float32, as in tests/op/test_golden.py; against the op, which that test compares with the vectors."""
    case = Golden(name)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        got = emulated.loss(seed=1, **arguments_of(case, dtype))
        batch = case.batch(dtype, "cpu")
        log_prob = batch.pop("log_prob").requires_grad_()
        loss, stats = maspo_ext.policy_loss(
            log_prob, **batch, ratio_mode=case.ratio_mode, config=case.config(), **case.aggregation
        )
        loss.backward()
        grad = log_prob.grad.double().numpy()
        scale = max(case.loss_scale, 1e-30)
        assert abs(got["loss"] - loss.item()) <= 10 * rtol * scale
        np.testing.assert_allclose(got["grad"], grad, rtol=rtol, atol=rtol * np.abs(grad).max(initial=0.0) * 1e-2)
        expected = dict(zip(maspo_ext.stat_names(case.ratio_mode), got["stats"], strict=True))
        for metric in METRICS:
            name_of = f"actor/{metric}"
            assert expected[name_of] == pytest.approx(stats.to_dict()[name_of], rel=10 * rtol, abs=1e-7)


def test_a_wrong_cu_seqlens_gives_nan_in_the_loss_and_every_gradient(emulated):
    """As a GPU has it, where nobody looks before the launch; the CPU's op refuses."""
    tokens, rng = 400, np.random.default_rng(0)
    batch = {name: rng.standard_normal(tokens) for name in ("log_prob", "old_log_prob", "advantages")}
    batch |= {"response_mask": np.ones(tokens), "max_seqlen": 200, "seed": 1}
    sound = emulated.packed_loss(**batch, cu_seqlens=np.array([0, 100, 200, 400]))
    assert np.isfinite(sound["loss"]) and np.isfinite(sound["grad"]).all()
    for wrong in WRONG_CU_SEQLENS:
        got = emulated.packed_loss(**batch, cu_seqlens=np.array(wrong))
        inside = [range(max(a, 0), min(b, tokens, max(a, 0) + 200)) for a, b in zip(wrong, wrong[1:], strict=False)]
        grad = np.array(got["grad"])
        assert np.isnan(got["loss"]), wrong
        assert all(np.isnan(grad[row]).all() for row in inside), wrong


def test_the_remedy_of_an_error_of_cuda_is_what_helps(emulated):
    no_image, old_driver, old_ptx, illegal_address = 209, 35, 222, 700
    assert "compute capability 8.0" in emulated.remedy_of_error(no_image)
    assert "update the driver" in emulated.remedy_of_error(old_driver)
    assert emulated.remedy_of_error(old_ptx) == emulated.remedy_of_error(old_driver)
    assert "CUDA_LAUNCH_BLOCKING=1" in emulated.remedy_of_error(illegal_address)


# ---- rounding


@pytest.mark.parametrize("chosen", [True, False], ids=["the target", "another word"])
@pytest.mark.parametrize("p", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("words", [2049, 32003, 151936])
def test_confident_rows_of_float64(words, p, chosen, emulated):
    """Within two units, without what tests/logits/test_accuracy.py grants on top: torch's own error."""
    logits, target, _ = confident_rows(4, words, p, chosen)
    exact = truth(logits, target)
    upstream = np.ones(4)
    got = emulated.logprob(
        seed=1, logits=logits.numpy(), target=target.numpy(), dlog_prob=upstream, dentropy=upstream
    )
    for name in ("log_prob", "entropy"):
        value = getattr(exact, name)
        error = abs(got[name] - value).max()
        assert error <= 2 * np.finfo(np.float64).eps * max(1, abs(value).max()), f"{name}: error {error}"


# ---- launches that no test could run


SHAPES = [(1, 1), (64, 4096), (16384, 4096), (1, 2**31 + 5), (2**31 + 5, 1), (2**20, 2**15), (3, 2**40), (37, 1000)]


@pytest.mark.parametrize("rows, cols", SHAPES)
def test_pieces_cover_every_token_once(rows, cols, emulated):
    steps_of_row, steps_of_warp, warps, blocks = emulated.cut(rows, cols)
    steps, all_warps = rows * steps_of_row, warps * blocks
    assert 128 * steps_of_row >= cols > 128 * (steps_of_row - 1)
    assert all_warps * steps_of_warp >= steps > (all_warps - warps) * steps_of_warp  # no block without work
    strides = (cols + 7, 1)
    last = (steps - 1) // steps_of_warp
    for warp in sorted({0, min(1, last), last // 2, max(last - 1, 0), last}):
        begin, end = warp * steps_of_warp, min((warp + 1) * steps_of_warp, steps)
        step = begin
        for piece, row, first, stop, offset, start in emulated.pieces_of_warp(rows, cols, warp, *strides)[:1000]:
            in_row = step % steps_of_row
            count = min(steps_of_row - in_row, end - step)
            assert (piece, row) == (step // steps_of_row + warp, step // steps_of_row)
            assert (first, stop) == (128 * in_row, min(128 * (in_row + count), cols))
            assert offset == row * strides[0] + first and start == row * cols + first
            pieces, many = emulated.pieces_of_row(rows, cols, row)
            assert pieces <= piece < pieces + many
            assert many == (steps_of_row * (row + 1) - 1) // steps_of_warp - steps_of_row * row // steps_of_warp + 1
            step += count
        assert step == end or step - begin >= 1000
    assert emulated.pieces_of_warp(rows, cols, all_warps, *strides) == []


@pytest.mark.parametrize("rows, cols", [(64, 4096), (256, 8192), (1024, 65536), (16384, 4096), (100003, 129)])
def test_every_warp_has_as_much_to_do(rows, cols, emulated):
    """But for the last ones; and blocks are as few as the device runs at a time, since the last one reads what each has left."""
    steps_of_row, steps_of_warp, warps, blocks = emulated.cut(rows, cols)
    assert blocks <= 132 and warps <= 16
    least = rows * steps_of_row / (132 * 16)
    assert steps_of_warp < least + 1 or steps_of_warp == 1


@pytest.mark.parametrize("rows, cols", [(16384, 4096), (131072, 512), (2048, 32768), (4225, 4096), (20000, 3584), (140, 2**19)])
def test_every_row_of_groups_is_finished_once(rows, cols, emulated):
    of_row, of_block, warps, blocks = emulated.groups(rows, cols)
    groups = rows * of_row
    assert of_row * 512 == cols and warps == 16 and blocks <= 132
    assert blocks * of_block >= groups > (blocks - 1) * of_block and of_block - groups / 132 < 1
    within = [emulated.rows_of_groups(rows, cols, block) for block in range(blocks)]
    for block, found in enumerate(within):
        assert all(block * of_block <= row * of_row and (row + 1) * of_row <= (block + 1) * of_block for row in found)
    every = [row for found in (*within, emulated.rows_of_groups(rows, cols, -1)) for row in found]
    assert sorted(every) == (list(range(rows)) if of_row > 1 else [])


@pytest.mark.parametrize("rows, cols", [(16384, 4096), (131072, 512), (2048, 32768), (20000, 3584)])
def test_warps_take_every_group_once_and_every_place_of_a_row_as_often(rows, cols, emulated):
    """Else padding would leave some warps all the work."""
    of_row, of_block, warps, _ = emulated.groups(rows, cols)
    for block in (0, 5):
        ways = [emulated.groups_of_warp(rows, cols, block, warp) for warp in range(warps)]
        assert sorted(group for way in ways for group in way) == list(range(block * of_block, (block + 1) * of_block))
        for way in ways:
            places = np.bincount([group % of_row for group in way], minlength=of_row)
            assert abs(places - len(way) / of_row).max() <= 4


@pytest.mark.parametrize("rows, cols", [(64, 4096), (4096, 4096), (16384, 4000), (0, 512), (512, 0), (1, 2**31), (100, 2**20)])
def test_there_are_no_groups_of_few_tokens_of_other_widths_and_of_rows_longer_than_a_blocks(rows, cols, emulated):
    assert emulated.groups(rows, cols) is None


def test_small_batches_have_small_blocks(emulated):
    assert emulated.cut(8, 512)[2:] == (4, 8) and emulated.cut(0, 5)[3] == 1


@pytest.mark.parametrize("rows, cols", [(1, 2**63 - 1), (2**17, 2**53), (2**30, 2**62)])
def test_a_max_seqlen_of_any_size_overflows_nothing(rows, cols, emulated):
    """Packed tensors have their rows' true lengths from cu_seqlens; what is cut is the longest that a row could be."""
    steps_of_row, steps_of_warp, warps, blocks = emulated.cut(rows, cols)
    assert 1 <= steps_of_row and rows * steps_of_row * 128 < 2**63
    assert (blocks * warps - warps) * steps_of_warp < rows * steps_of_row <= blocks * warps * steps_of_warp


def test_too_many_blocks_are_refused_and_not_cut_to_32_bits(emulated):
    invalid_value, invalid_configuration = 1, 9
    assert emulated.error_of_blocks(2**31 - 1) == invalid_value  # as far as the unknown method
    assert emulated.error_of_blocks(2**31) == emulated.error_of_blocks(2**32 + 1) == invalid_configuration


def test_too_many_rows_are_refused_and_not_cut_to_32_bits(emulated):
    invalid_value, invalid_configuration = 1, 9
    assert emulated.errors_of_rows(2**31 - 1, 1) == (invalid_value,) * 2  # as far as the unknown dtype
    for outer, inner in ((2**31, 1), (2**16, 2**15), (1, 2**32 + 1)):
        assert emulated.errors_of_rows(outer, inner) == (invalid_configuration,) * 2
    assert emulated.errors_of_rows(0, 5) == (0, 0)  # no rows: nothing to launch


def test_rows_further_apart_than_32_bits_count(emulated, tmp_path):
    """Three rows in a file of 34 GB, of which only the pages that are touched exist."""
    words, stride = 1000, 2**31 + 6
    memory = np.memmap(tmp_path / "rows", np.float64, "w+", shape=(2 * stride + words,))
    rows = np.lib.stride_tricks.as_strided(memory, (3, words), (8 * stride, 8))
    draw = np.random.default_rng(0)
    rows[:] = draw.normal(size=rows.shape)
    logits = torch.tensor(rows, requires_grad=True)
    target, (dlog_prob, dentropy) = np.array([0, 999, 500]), draw.normal(size=(2, 3))
    got = emulated.logprob(seed=1, logits=rows, target=target, dlog_prob=dlog_prob, dentropy=dentropy)
    log_p = logits.log_softmax(-1)
    log_prob, entropy = log_p[range(3), target], -(log_p.exp() * log_p).sum(-1)
    torch.autograd.backward((log_prob, entropy), (torch.tensor(dlog_prob), torch.tensor(dentropy)))
    np.testing.assert_allclose(got["log_prob"], log_prob.detach(), rtol=1e-12)
    np.testing.assert_allclose(got["entropy"], entropy.detach(), rtol=1e-12)
    np.testing.assert_allclose(rows, logits.grad, rtol=1e-10, atol=1e-14)


# ---- planted faults: file, what is replaced, by what, the sanitizer that has to catch it, and the words of the report

BATCH_FAULTS = {
    "write behind the end": ("pack.cuh", "if (i < count) p[i] = values[i];", "p[i] = values[i];", "address", "heap-buffer-overflow"),
    "read behind the end": ("load.cuh", "if (i < count) out[i] = convert(p[i * stride]);", "out[i] = convert(p[i * stride]);", "address", "heap-buffer-overflow"),
    "tail taken for a whole vector": ("pack.cuh", "if (count == N && aligned_for_pack<N>(p)) {", "if (aligned_for_pack<N>(p)) {", "address", "heap-buffer-overflow|misaligned"),
    "mask read behind the end": ("mask_words.cuh", "if (of_lane < static_cast<int>(sizeof(Words))) return {1, 0, 0, 0};", "", "address", "heap-buffer-overflow"),
    "wide mask read behind the end": ("mask_words.cuh", "threadIdx.x % kWarp * kLane) < kLane) return words;", "threadIdx.x % kWarp * kLane) < -1024) return words;", "address", "heap-buffer-overflow"),
    "read ahead beyond the last row": ("plain_steps.cuh", "kStepTokens, 0, p.batch.tokens);", "kStepTokens, 0, 2 * p.batch.tokens);", "address", "heap-buffer-overflow"),
    "vectors at unaligned addresses": ("pack.cuh", "reinterpret_cast<uintptr_t>(p) % kBytes == 0", "p != nullptr", "address", "misaligned address"),
    "no barrier after a shared write": ("finish.cuh", "lane] = of_warp;\n  __syncthreads();\n", "lane] = of_warp;\n", "thread", "data race"),
    "no barrier before all read what one has written": ("finish.cuh", "  __syncthreads();  // which shows one", "  // which shows one", "thread", "data race"),
    "no barrier before the ticket": ("forward.cuh", "  __syncthreads();\n  if (is_last_block", "  if (is_last_block", "thread", "data race"),
    "no barrier before the flag is read": ("forward.cuh", "  __syncthreads();\n  return *scratch;", "  return *scratch;", "thread", "data race"),
    "no release fence": ("forward.cuh", "__threadfence();  // release", "// release", "thread", "data race"),
    "no acquire fence": ("forward.cuh", "__threadfence();  // acquire", "// acquire", "thread", "data race"),
    "ticket not atomic": ("forward.cuh", "atomicAdd(counter, 1u)", "(*counter)++", "thread", "data race"),
    "counter not reset": ("launch.cu", "+ of_graph * kCounters + next;", "+ of_graph * kCounters + 0 * next;", "plain", r"seed \d+: "),
    "wrong shuffle mask": ("reduce.cuh", "kAllLanes = 0xffffffffu", "kAllLanes = 0x0000ffffu", "plain", "mask (does not name|that does not name it)"),
    "a level of the shuffle missing": ("reduce.cuh", "for (int offset = kWarp / 2; offset > 0; offset /= 2) value +=", "for (int offset = kWarp / 4; offset > 0; offset /= 2) value +=", "plain", r"seed \d+: "),
    "sums of the wrong half": ("reduce.cuh", "sent = upper ? value[i] : value[i + kHalf]", "sent = upper ? value[i + kHalf] : value[i]", "plain", r"seed \d+: "),
    "barrier in divergent code": ("finish.cuh", "  __syncthreads();\n  double total", "  if (threadIdx.x < kWarp) __syncthreads();\n  double total", "plain", "different barriers|never come"),
    "a warp's numbers lost": ("finish.cuh", "for (int i = 0; i < warps_of_block(); ++i)", "for (int i = 1; i < warps_of_block(); ++i)", "plain", r"seed \d+: "),
    "a unit of the last block lost": ("finish.cuh", "if (i < units && lane", "if (i + 1 < units && lane", "plain", r"seed \d+: "),
    "rows of the last block lost": ("finish.cuh", "first += rows_at_once)", "first += 2 * rows_at_once)", "plain", r"seed \d+: "),
    "a level of the rows' shuffle missing": ("finish.cuh", "for (int offset = lanes / 2; offset > 0", "for (int offset = lanes / 2; offset > 1", "plain", r"seed \d+: "),
    "a split row's scale lost": ("finish.cuh", "    p.row_scale[row] = own_scale(p, sums);", "    if (row > 0) p.row_scale[row] = own_scale(p, sums);", "plain", r"seed \d+: "),
    "what the scales of all rows have in common lost": ("backward.cuh", "scale_of_row(p.scales[0], ", "scale_of_row(1, ", "plain", r"seed \d+: grad"),
    "a scale that is given lost": ("steps.cuh", "scaled[i] = values[i] * scale;", "scaled[i] = values[i] + 0 * scale;", "plain", r"seed \d+: dlogp"),
    "gradients left that have to be scaled": ("backward.cuh", "if (scale == S(1) && ", "if (scale != S(0) && ", "plain", r"seed \d+: backward in the memory"),
    "no barrier before a block's split rows": ("forward.cuh", "  __syncthreads();  // shows the pieces", "  // shows the pieces", "thread", "data race"),
    "a split row of a block lost": ("tiling.h", "? 0 : cut.warps - 1, false", "? 0 : cut.warps - 2, false", "plain", r"seed \d+: "),
    "a row that is not split taken for one": ("tiling.h", "row < b.rows && row * length_of_row < end ?", "row < b.rows ?", "plain", r"seed \d+: "),
    "a whole row's scale lost": ("forward.cuh", "if (lane == 0) p.row_scale[row] = own_scale(p, sums);", "", "plain", r"seed \d+: "),
    "mask of a group behind the end": ("groups.cuh", "if (later < end_) words_", "words_", "address", "heap-buffer-overflow"),
    "inputs of the group before": ("groups.cuh", "{ read(next, even); }", "{ read(token, even); }", "plain", r"seed \d+: dlogp"),
    "mask of a group's first step for all": ("groups.cuh", "    flags_ = flags_.next();\n", "", "plain", r"seed \d+: dlogp"),
    "a row of two blocks lost": ("groups.h", "return {cut.blocks - 1, false, 0, cut.of_block};", "return {cut.blocks - 2, false, 0, cut.of_block};", "plain", r"seed \d+: "),
    "a row of a block lost": ("groups.h", "return {cut.of_row > 1 ? last - first : 0, true, first, 0};", "return {cut.of_row > 1 ? last - first - 1 : 0, true, first, 0};", "plain", r"seed \d+: "),
    "a part of the groups' sums lost": ("forward.cuh", "  end_part();\n  end_block", "  end_block", "plain", r"seed \d+: "),
    "last column lost": ("walk.cuh", "bounded(span.last - col, 0, kLane)", "bounded(span.last - col - 1, 0, kLane)", "plain", r"seed \d+: dlogp"),
    "last column of a plain batch lost": ("plain_steps.cuh", "bounded(left - col, 0, kLane)", "bounded(left - col - 1, 0, kLane)", "plain", r"seed \d+: dlogp"),
    "inputs of the step before": ("plain_steps.cuh", "if (flags_.ones()) next_ = read.at(col + kStepTokens);", "if (flags_.ones()) next_ = read.at(col);", "plain", r"seed \d+: dlogp"),
    "mask of the step before": ("plain_steps.cuh", "        flags_ = mask.after(words_);\n", "", "plain", r"seed \d+: dlogp"),
    "a weight of the mask taken for one": ("steps.cuh", "in[i] = {mask[i],", "in[i] = {S(mask[i] != S(0)),", "plain", r"seed \d+: dlogp"),
    "a weight of a plain mask taken for one": ("plain_steps.cuh", "in = {mask[i],", "in = {S(mask[i] != S(0)),", "plain", r"seed \d+: dlogp"),
    "twos taken for ones": ("mask_words.cuh", "0x3ff00000u", "0x40000000u", "plain", r"seed \d+: dlogp"),
    "a gradient written that nobody asked for": ("steps.cuh", "if (p.dlogp != nullptr) store_scaled", "store_scaled", "address", "SEGV|null pointer"),
    "a plain gradient written that nobody asked for": ("plain_steps.cuh", "if (dlogp != nullptr) store_scaled", "store_scaled", "address", "SEGV|null pointer"),
    "a NaN among whole steps overlooked": ("plain_steps.cuh", "if (!__all_sync(kAllLanes, probe == probe)) return false;", "", "plain", r"seed \d+: "),
}  # fmt: skip
ROW_FAULTS = {
    "read behind a row's end": ("logprob.cuh", "i < count ? row[first + i] : missing", "i < kWords + 0 * count ? row[first + i] : missing", "address", "heap-buffer-overflow"),
    "a row's tail read as a whole pack": ("logprob.cuh", "words - (words - head) % kWords;", "words;", "address", "heap-buffer-overflow"),
    "packs at unaligned addresses of a row": ("logprob.cuh", "bounded((kWords - past_boundary) % kWords, 0, words)", "0 * past_boundary", "address", "misaligned address"),
    "gradient written behind a row's end": ("logprob.cuh", "store_pack(grad + first, count, rounded)", "store_pack(grad + first, kWords + 0 * count, rounded)", "address", r"heap-buffer-overflow|seed \d+: grad"),
    "zeros written behind a row's end": ("logprob.cuh", "static_cast<int>(bounded(words - first, 0, kWords))", "kWords", "address", r"heap-buffer-overflow|seed \d+: grad"),
    "no barrier before a row's sums are read": ("reduce.cuh", "scratch[threadIdx.x / kWarp] = of_warp;\n  __syncthreads();\n  for", "scratch[threadIdx.x / kWarp] = of_warp;\n  for", "thread", "data race"),
    "no barrier before the next of a row's sums": ("reduce.cuh", "  __syncthreads();  // before the next call writes scratch\n", "", "thread", "data race"),
    "a level of the maximum's shuffle missing": ("reduce.cuh", "for (int offset = kWarp / 2; offset > 0; offset /= 2) {", "for (int offset = kWarp / 4; offset > 0; offset /= 2) {", "plain", r"seed \d+: "),
    "wrong shuffle mask of a row": ("reduce.cuh", "kAllLanes = 0xffffffffu", "kAllLanes = 0x0000ffffu", "plain", "mask (does not name|that does not name it)"),
    "a row's sums of one warp lost": ("logit_sums.cuh", "block_sum<kWarps>(s.sum, scratch)", "block_sum<kWarps - 1>(s.sum, scratch)", "plain", r"seed \d+: "),
    "a row's sums of float64 left coarse": ("logit_sums.cuh", "(value - coarse) + lost", "0 * lost", "plain", r"seed \d+: "),
    "scaled behind the end": ("scale.cuh", "bounded(p.count - first, 0, kWords)", "kWords", "address", "heap-buffer-overflow"),
    "a tensor's last numbers not scaled": ("scale.cuh", "for (; first < p.count; first += stride)", "for (; first + kWords <= p.count; first += stride)", "plain", r"seed \d+: scaled"),
    "a step of a tensor not scaled": ("scale.cuh", "first += kScalePacks * stride)", "first += (kScalePacks + 1) * stride)", "plain", r"seed \d+: scaled"),
    "a row's last words lost": ("logprob.cuh", "if (threadIdx.x >= 2) return;", "if (threadIdx.x >= 1) return;", "plain", r"seed \d+: "),
    "a step of a row lost": ("logprob.cuh", "first += kRowPacks * kStride", "first += (kRowPacks + 1) * kStride", "plain", r"seed \d+: "),
    "words that are not there counted": ("logprob.cuh", "const T banned = Format::rounded(-static_cast<S>(Limits<double>::infinity()));", "const T banned = T(0);", "plain", r"seed \d+: "),
    "maximum raised without the sums": ("logprob.cuh", "    seen.raise(highest, inv_temperature);", "    seen.sums.max = highest;", "plain", r"seed \d+: "),
    "parts of the first block of words alone": ("logprob.cuh", "while (part >= blocks.parts_up_to[which]) ++which;", "", "plain", r"seed \d+: grad"),
    "parts counted from the first block of words on": ("logprob.cuh", "if (which > 0) part -= blocks.parts_up_to[which - 1];", "", "plain", r"seed \d+: grad"),
    "a ninth block of words lost": ("launch_logprob.cu", "first < count && status", "first < 1 && status", "plain", r"seed \d+: grad"),
    "a row's last part lost": ("logprob.cuh", "1 + (words - 1) / kPartWords<T>", "words / kPartWords<T>", "plain", r"seed \d+: grad"),
    "the target in the row's first part": ("logprob.cuh", "index - p.target.first_word - first", "index - p.target.first_word - block.first", "plain", r"seed \d+: grad"),
    "last word of a pack never the target": ("logprob.cuh", "target < first + kWords)", "target < first + kWords - 1)", "plain", r"seed \d+: grad"),
}  # fmt: skip
# So many seeds show every fault; a run ends with the first that does.
FAULT_SEEDS = {"plain": 120, "address": 40, "thread": 12}
FAULTS = [("random_cases", name) for name in BATCH_FAULTS] + [("random_rows", name) for name in ROW_FAULTS]


@pytest.mark.slow
def test_every_planted_fault_is_caught(builders, tmp_path):
    def caught(program: str, name: str) -> str:
        file, old, new, sanitizer, report = (BATCH_FAULTS | ROW_FAULTS)[name]
        csrc = tmp_path / re.sub(r"\W", "_", name)
        shutil.copytree(CSRC, csrc)
        source = (csrc / "cuda" / file).read_text()
        if source.count(old) < 1:
            return f"{name}: {old!r} is not in {file} any more: plant the fault where the code is now"
        (csrc / "cuda" / file).write_text(source.replace(old, new, 1))
        if name == "counter not reset":
            # Every launch takes the next counter; only where they share one does it show.
            forward = (csrc / "cuda" / "forward.cuh").read_text()
            assert (reset := "if (*scratch) atomicAdd(counter, 0u - gridDim.x);") in forward
            (csrc / "cuda" / "forward.cuh").write_text(forward.replace(reset, ""))
        completed = run_program(builders[sanitizer].program(program, csrc), FAULT_SEEDS[sanitizer])
        if completed.returncode == 0 or not re.search(report, completed.stderr):
            return f"{name}: not caught (exit {completed.returncode}): {completed.stderr[-500:]}"
        return ""

    for builder in builders.values():
        builder.common(), [builder.driver(program) for program in PROGRAMS]
    missed = [miss for miss in in_parallel([lambda fault=fault: caught(*fault) for fault in FAULTS]) if miss]
    assert not missed, "\n".join(missed)
