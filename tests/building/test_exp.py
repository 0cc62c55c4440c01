"""The vectors' own exp (csrc/cpu/vec_exp.h, vec_exp_double.h) against the exact one, over the ranges of floats and doubles."""

import subprocess
from pathlib import Path

import pytest
import torch

from build_tools.flags import CSRC, CXX_STANDARD, find_cxx

CAN_RUN = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(torch.backends.cpu.get_cpu_capability(), [])
DEFINITIONS = {
    "avx2": ('MASPO_ISA_TARGET="avx2,fma,f16c"', "MASPO_ISA_FLOATS=8", "MASPO_ISA_OP(name,...)=_mm256_##name(__VA_ARGS__)"),
    "avx512": ('MASPO_ISA_TARGET="avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"', "MASPO_ISA_FLOATS=16",
               "MASPO_ISA_OP(name,...)=_mm512_maskz_##name(-1,__VA_ARGS__)"),
}  # fmt: skip
LARGEST_ERRORS = 1.0, 0.85  # ULP, of floats and of doubles; measured 0.88 and 0.80


def compiled(isa, folder, *options, fewer=1):
    """The program that measures the error of every number, or of so many times fewer."""
    program = folder / "exp_error"
    source = Path(__file__).with_name("exp_error.cpp")
    definitions = [f"-D{one}" for one in (*DEFINITIONS[isa], f"MASPO_FEWER={fewer}")]
    command = [*find_cxx(), f"-std={CXX_STANDARD}", "-O3", f"-I{CSRC}", *definitions, *options]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    return program


def assert_small(output):
    """What it printed; an exp that is rounded once has an error of 0.5 somewhere."""
    errors = [float(one) for one in output.split()]
    assert len(errors) == len(LARGEST_ERRORS), output
    assert all(0.45 <= error <= largest for error, largest in zip(errors, LARGEST_ERRORS)), output


@pytest.mark.parametrize("isa", CAN_RUN)
def test_small_error_and_right_at_the_ends(isa, tmp_path):
    completed = subprocess.run([str(compiled(isa, tmp_path))], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout
    assert_small(completed.stdout)
