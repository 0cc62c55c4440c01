"""Same input, same bits; and the instruction sets agree."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .cases import METHODS, OPTIONS, assert_close, assert_same_bits, every_mode, random_batch, run

# Wide enough that rows are cut in pieces; many rows that share a unit; both over several threads.
SHAPES = [(3, 20000), (64, 3000), (5000, 7)]
# What a CPU of each kind runs, best last; elsewhere only the plain build exists.
OF_X86 = {"AVX2": ["plain", "avx2"], "AVX512": ["plain", "avx2", "avx512"]}
ON_ARM = platform.machine() in ("aarch64", "arm64")
ISAS = ["plain", "neon"] if ON_ARM else OF_X86.get(torch.backends.cpu.get_cpu_capability(), ["plain"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_bits_from_run_to_run(dtype, shape, device):
    batch = random_batch(*shape, dtype=dtype, device=device)
    first = run(batch)
    assert first.grad.any()
    for _ in range(19):
        assert_same_bits(run(batch), first)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_mode
def test_same_bits_from_run_to_run_of_every_method(method, shape, device):
    batch = method.full_batch(*shape, dtype=torch.float32, device=device)
    first = run(batch, **method.keywords, **method.takes(OPTIONS))
    assert first.grad.any()
    for _ in range(3):
        assert_same_bits(run(batch, **method.keywords, **method.takes(OPTIONS)), first)


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss_agg_mode", ["token-mean", "seq-mean-token-mean"])
def test_same_bits_for_every_number_of_threads(loss_agg_mode, shape, restored_threads):
    batch = random_batch(*shape, dtype=torch.float32)
    assert_same_bits_for_every_number_of_threads(batch, loss_agg_mode=loss_agg_mode)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_mode
def test_same_bits_for_every_number_of_threads_of_every_method(method, shape, restored_threads):
    batch = method.full_batch(*shape, dtype=torch.float32)
    assert_same_bits_for_every_number_of_threads(batch, **method.keywords, **method.takes(OPTIONS))


def assert_same_bits_for_every_number_of_threads(batch, **keywords):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(batch, **keywords))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


SCRIPT = """
import sys, torch, maspo_ext
results = [torch.ops.maspo.cpu_isa()]
for batch, keywords in torch.load(sys.argv[1]):
    batch["log_prob"].requires_grad_()
    loss, stats = torch.ops.maspo.loss(**batch, **keywords)
    (grad,) = torch.autograd.grad(loss, batch["log_prob"])
    results.append((loss.detach(), grad, stats))
torch.save(results, sys.argv[2])
"""
CALLS = [
    (random_batch(9, 600, dtype=dtype, spread=2.0), {"gate_gradient": gate_gradient})
    for dtype in (torch.float64, torch.float32)
    for gate_gradient in (False, True)
]
CALLS += [
    (method.full_batch(9, 600, dtype=dtype, spread=2.0), {**method.keywords, **method.takes(options)})
    for method in METHODS.values()
    for dtype in (torch.float64, torch.float32)
    for options in ({}, OPTIONS)
]


def run_with_isa(isa: str | None, folder: Path) -> subprocess.CompletedProcess:
    torch.save(CALLS, folder / "calls.pt")
    environment = {name: value for name, value in os.environ.items() if name != "MASPO_CPU_ISA"}
    if isa is not None:
        environment["MASPO_CPU_ISA"] = isa
    command = [sys.executable, "-c", SCRIPT, "calls.pt", "results.pt"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# An addition of floats rounds by at most 2^-24, up to 512 of them follow each other, and where most tokens have the same
# number, as a method's bound may be, all of them round to the same side.
FLOAT_SUMS = 512 * 2**-24


@pytest.mark.parametrize("isa", [*ISAS, None])
def test_instruction_sets_agree(isa, tmp_path):
    """They differ in exp (libm or our own, at most 1 ULP), in the order of additions and in fused multiply-adds."""
    completed = run_with_isa(isa, tmp_path)
    assert completed.returncode == 0, completed.stderr
    used, *results = torch.load(tmp_path / "results.pt")
    assert used == (isa or ISAS[-1])
    for (batch, keywords), result in zip(CALLS, results, strict=True):
        here = run(batch, **keywords)
        rtol, stats_rtol = (1e-13, 1e-13) if batch["log_prob"].dtype == torch.float64 else (2e-6, FLOAT_SUMS)
        assert_close(here._replace(loss=result[0], grad=result[1]), here, rtol)
        assert_close(here._replace(stats=result[2]), here, stats_rtol)


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "", *({"avx2", "avx512", "neon"} - set(ISAS))])
def test_unknown_or_missing_instruction_set_is_an_error(isa, tmp_path):
    completed = run_with_isa(isa, tmp_path)
    assert completed.returncode != 0
    assert (
        f"MASPO_CPU_ISA: expected plain, avx2, avx512 or neon (one that this machine has), got '{isa}'. Unset it"
        in completed.stderr
    )
