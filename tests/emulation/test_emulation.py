"""The CUDA kernels' own source, run on the CPU by an emulation of CUDA's threads (``cuda_runtime.h`` in this folder).

Random batches through the kernels and the CPU engine, under sanitizers and over many orders of threads and blocks; the
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

from ..op.golden import METRICS, NAMES, Golden
from .build import CSRC, Builder, in_parallel

CASES = {"plain": 200, "address": 100, "thread": 12}


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulation")
    return {sanitizer: Builder(folder, sanitizer) for sanitizer in CASES}


def run_program(program: Path, count: int, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program), "0", str(count), *arguments]
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    completed = subprocess.run(command, **options)
    if "unexpected memory mapping" in completed.stderr:
        # A ThreadSanitizer older than the kernel: it needs the addresses where they were before they were randomised so far.
        completed = subprocess.run(["/usr/bin/setarch", "-R", *command], **options)
    return completed


@pytest.mark.parametrize(
    "sanitizer",
    ["plain", pytest.param("address", marks=pytest.mark.slow), pytest.param("thread", marks=pytest.mark.slow)],
)
def test_random_batches_agree_with_the_cpu_engine(sanitizer, builders):
    """Each case has its own batch and its own order of threads and blocks."""
    builder = builders[sanitizer]
    program = builder.program(builder.kernels("kernels"), "random_cases")
    completed = run_program(program, CASES[sanitizer])
    assert completed.returncode == 0, completed.stderr[-4000:]
    assert f"{CASES[sanitizer]} cases agree" in completed.stdout


# ---- golden vectors


@pytest.fixture(scope="module")
def emulated(builders):
    (path,) = builders["plain"].module().glob("emulated_kernels*.so")
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
        config.candidates() | config.search()
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


# ---- launches that no test could run


@pytest.mark.parametrize(
    "rows, cols", [(1, 1), (64, 4096), (16384, 4096), (1, 2**31 + 5), (2**31 + 5, 1), (2**20, 2**15), (3, 2**40)]
)
def test_pieces_cover_every_token_once(rows, cols, emulated):
    tokens, pieces, units = emulated.tiling(rows, cols)
    assert pieces * tokens >= cols > (pieces - 1) * tokens and units == -(-rows * pieces // 4)
    assert 128 <= tokens <= 4096
    strides = (cols + 7, 1)
    last_row = rows - 1
    for index in sorted({0, 1, pieces // 2, pieces - 2, pieces - 1} & set(range(pieces))):
        first, last, offset, start = emulated.piece(rows, cols, last_row, index, *strides)
        assert (first, last) == (index * tokens, min((index + 1) * tokens, cols))
        assert offset == last_row * strides[0] + first and start == last_row * cols + first


def test_large_batches_leave_little_to_the_last_block(emulated):
    """It reads 16 bytes a piece and a few hundred a block, while the grid reads at least 13 a token."""
    for rows, cols in ((64, 4096), (256, 8192), (1024, 65536), (16384, 4096)):
        tokens, pieces, units = emulated.tiling(rows, cols)
        assert (16 * rows * pieces + 200 * units) < 0.01 * 13 * rows * cols or rows * cols < 2**22


def test_too_many_blocks_are_refused_and_not_cut_to_32_bits(emulated):
    invalid_value, invalid_configuration = 1, 9
    assert emulated.error_of_units(2**31 - 1) == invalid_value  # as far as the unknown method
    assert emulated.error_of_units(2**31) == emulated.error_of_units(2**32 + 1) == invalid_configuration


# ---- planted faults: file, what is replaced, by what, the sanitizer that has to catch it, and the words of the report

FAULTS = {
    "write behind the end": ("load.cuh", "if (i < count) p[i] = values[i];", "p[i] = values[i];", "address", "heap-buffer-overflow"),
    "read behind the end": ("load.cuh", "if (i < count) out[i] = convert(p[i * v.col_stride]);", "out[i] = convert(p[i * v.col_stride]);", "address", "heap-buffer-overflow"),
    "tail taken for a whole vector": ("load.cuh", "if (count == kLane && aligned_for_four(p)) {", "if (aligned_for_four(p)) {", "address", "heap-buffer-overflow|misaligned"),
    "vectors at unaligned addresses": ("load.cuh", r"reinterpret_cast<uintptr_t>(p) % alignof(Four<T>) == 0", "p != nullptr", "address", "misaligned address"),
    "no barrier after a shared write": ("reduce.cuh", "scratch[threadIdx.x / kWarp] = of_warp;\n  __syncthreads();\n  StatSums", "scratch[threadIdx.x / kWarp] = of_warp;\n  StatSums", "thread", "data race"),
    "no barrier before a shared array is written again": ("reduce.cuh", "  __syncthreads();  // before the next call writes scratch\n  return total;\n}\n\n// The same", "  return total;\n}\n\n// The same", "thread", "data race"),
    "no barrier before the flag is read": ("forward.cuh", "  __syncthreads();\n  return *scratch;", "  return *scratch;", "thread", "data race"),
    "no release fence": ("forward.cuh", "__threadfence();  // release", "// release", "thread", "data race"),
    "no acquire fence": ("forward.cuh", "__threadfence();  // acquire", "// acquire", "thread", "data race"),
    "ticket not atomic": ("forward.cuh", "atomicAdd(counter, 1u)", "(*counter)++", "thread", "data race"),
    "counter not reset": ("launch.cu", "*counter = static_cast<unsigned*>(first) + launches", "*counter = static_cast<unsigned*>(first) + 0 * launches", "plain", r"seed \d+: "),
    "wrong shuffle mask": ("reduce.cuh", "kAllLanes = 0xffffffffu", "kAllLanes = 0x0000ffffu", "plain", "mask (does not name|that does not name it)"),
    "a level of the shuffle missing": ("reduce.cuh", "for (int offset = kWarp / 2; offset > 0; offset /= 2) value +=", "for (int offset = kWarp / 4; offset > 0; offset /= 2) value +=", "plain", r"seed \d+: "),
    "barrier in divergent code": ("reduce.cuh", "  __syncthreads();\n  double total = 0;", "  if (threadIdx.x < kWarp) __syncthreads();\n  double total = 0;", "plain", "different barriers|never come"),
    "last column lost": ("load.cuh", "col < span.last; col +=", "col < span.last - 1; col +=", "plain", r"seed \d+: dlogp"),
}  # fmt: skip


@pytest.mark.slow
def test_every_planted_fault_is_caught(builders, tmp_path):
    def caught(name: str) -> str:
        file, old, new, sanitizer, report = FAULTS[name]
        csrc = tmp_path / re.sub(r"\W", "_", name)
        shutil.copytree(CSRC, csrc)
        source = (csrc / "cuda" / file).read_text()
        if source.count(old) < 1:
            return f"{name}: {old!r} is not in {file} any more: plant the fault where the code is now"
        (csrc / "cuda" / file).write_text(source.replace(old, new, 1))
        if name == "counter not reset":
            # Every launch takes the next counter; only where they share one does it show.
            forward = (csrc / "cuda" / "forward.cuh").read_text()
            assert (reset := "if (*scratch) *counter = 0;") in forward
            (csrc / "cuda" / "forward.cuh").write_text(forward.replace(reset, ""))
        builder = builders[sanitizer]
        program = builder.program(builder.kernels(csrc.name, csrc), f"random_cases_{csrc.name}")
        completed = run_program(program, 40 if sanitizer != "thread" else 12)
        if completed.returncode == 0 or not re.search(report, completed.stderr):
            return f"{name}: not caught (exit {completed.returncode}): {completed.stderr[-500:]}"
        return ""

    for builder in builders.values():
        builder.common(), builder.driver("random_cases")
    missed = [miss for miss in in_parallel([lambda name=name: caught(name) for name in FAULTS]) if miss]
    assert not missed, "\n".join(missed)
