"""Same input, same bits, for logprob; and the instruction sets agree. (Matrix products are torch's.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maspo_ext

from ..op.test_determinism import ISAS, restored_threads  # noqa: F401
from .cases import FLOAT_DTYPES, IGNORED, assert_same_bits, assert_same_row, random_rows, run_rows

SHAPES = [(3, 100003), (64, 2049), (999, 7)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def run(logits, target):
    return run_rows(maspo_ext.logprob, logits, target, 0.7)


@every_shape
@every_dtype
def test_same_bits_from_run_to_run(dtype, shape, device):
    rows = random_rows(*shape, dtype, device)
    first = run(*rows)
    for _ in range(3):
        assert_same_bits(run(*rows), first)


@every_shape
@every_dtype
def test_same_bits_for_every_number_of_threads(dtype, shape, restored_threads):  # noqa: F811
    rows = random_rows(*shape, dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(*rows))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@every_dtype
def test_a_row_has_the_same_bits_among_others_and_anywhere_in_memory(dtype, device):
    logits, target = random_rows(9, 2051, dtype, device)
    whole = run(logits, target)
    alone = []
    for row in range(9):
        # One word further on: no vector is aligned any more.
        moved = torch.nn.functional.pad(logits[row : row + 1], (1, 0))[:, 1:]
        alone.append(maspo_ext.logprob(moved, target[row : row + 1], 0.7))
    log_prob, entropy = (torch.cat(values) for values in zip(*alone, strict=True))
    assert_same_row((log_prob, entropy), (whole.log_prob, whole.entropy), device)


SCRIPT = """
import sys, torch, maspo_ext
results = [torch.ops.maspo.cpu_isa()]
for logits, target, temperature in torch.load(sys.argv[1]):
    logits.requires_grad_()
    log_prob, entropy = maspo_ext.logprob(logits, target, temperature)
    (log_prob - 2 * entropy).sum().backward()
    results.append((log_prob.detach(), entropy.detach(), logits.grad))
torch.save(results, sys.argv[2])
"""


def calls():
    for dtype in FLOAT_DTYPES:
        for words in (1, 5, 33, 2048, 4099):
            for temperature in (1.0, 0.7):
                logits, target = random_rows(9, words, dtype)
                target[3] = IGNORED
                yield logits, target, temperature


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa, tmp_path):
    """They differ in exp (at most 1 ULP), in the order of additions and in fused multiply-adds."""
    torch.save(list(calls()), tmp_path / "calls.pt")
    command = [sys.executable, "-c", SCRIPT, "calls.pt", "results.pt"]
    environment = {**os.environ, "MASPO_CPU_ISA": isa}
    completed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    used, *results = torch.load(tmp_path / "results.pt")
    assert used == isa
    for (logits, target, temperature), (log_prob, entropy, grad) in zip(calls(), results, strict=True):
        logits.requires_grad_()
        here = maspo_ext.logprob(logits, target, temperature)
        (here.log_prob - 2 * here.entropy).sum().backward()
        units = 4 * torch.finfo(log_prob.dtype).eps * (1 if temperature == 1 else float(logits.detach().abs().max()))
        torch.testing.assert_close(log_prob, here.log_prob.detach(), rtol=units, atol=units)
        torch.testing.assert_close(entropy, here.entropy.detach(), rtol=units, atol=units)
        torch.testing.assert_close(grad, logits.grad, rtol=torch.finfo(grad.dtype).eps, atol=8 * units)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_other_instruction_sets_are_as_exact(isa):
    """The tests of test_accuracy.py: a lane of the plain build is all the words of a sum. torch has as many lanes, in every sum."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("test_accuracy.py")),
    ]
    environment = {**os.environ, "MASPO_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": {"plain": "default"}.get(isa, isa)}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout[-3000:]
