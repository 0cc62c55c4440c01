"""The vectors' own exp (csrc/cpu/vec_exp.h) against the exact one, over the range of floats."""

import subprocess
from pathlib import Path

import pytest
import torch

from build_tools.flags import CSRC, CXX_STANDARD, find_cxx

CAN_RUN = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(torch.backends.cpu.get_cpu_capability(), [])
DEFINITIONS = {
    "avx2": ('MASPO_ISA_TARGET="avx2,fma,f16c"', "MASPO_ISA_FLOATS=8", "MASPO_ISA_EXPD=Sleef_expd4_u10",
             "MASPO_ISA_OP(name,...)=_mm256_##name(__VA_ARGS__)", "MASPO_ISA_REGISTER_D=__m256d"),
    "avx512": ('MASPO_ISA_TARGET="avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"', "MASPO_ISA_FLOATS=16",
               "MASPO_ISA_EXPD=Sleef_expd8_u10", "MASPO_ISA_OP(name,...)=_mm512_maskz_##name(-1,__VA_ARGS__)",
               "MASPO_ISA_REGISTER_D=__m512d"),
}  # fmt: skip
STEP = 101  # every so many-th float: 2 s
LARGEST_ERROR = 1.0  # ULP; measured 0.88


@pytest.mark.parametrize("isa", CAN_RUN)
def test_within_one_ulp_and_right_at_the_ends(isa, tmp_path):
    program = tmp_path / "exp_error"
    source = Path(__file__).with_name("exp_error.cpp")
    command = [*find_cxx(), f"-std={CXX_STANDARD}", "-O3", f"-I{CSRC}", *(f"-D{one}" for one in DEFINITIONS[isa])]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    completed = subprocess.run([str(program), str(STEP)], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout
    assert 0.5 <= float(completed.stdout) <= LARGEST_ERROR
