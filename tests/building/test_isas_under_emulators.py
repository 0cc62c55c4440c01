"""The CPU engine for instruction sets that this machine need not have: compiled, and run under an emulator."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_tools.flags import CSRC, CXX_STANDARD, WARNINGS

from . import test_exp
from .arm_emulator import ArmProgram
from .x86_emulator import X86Program

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))

import extras  # noqa: E402

pytestmark = pytest.mark.slow
SOURCES = [*sorted(CSRC.glob("cpu/*.cpp")), HERE / "isas_agree.cpp"]
ARM_GCC = shutil.which("aarch64-linux-gnu-g++")
ZIG = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]


def skip_without(*needed: extras.Extra) -> None:
    missing = [extra.remedy() for extra in needed if not extra.is_found()]
    if missing:
        pytest.skip(f"{'. '.join(missing)}; or all extras: make extras")


def compiled(compiler: list[str], folder: Path) -> Path:
    path = folder / "isas_agree"
    command = [*compiler, "-static", f"-std={CXX_STANDARD}", "-O2", *WARNINGS, "-Werror", f"-I{CSRC}"]
    environment = os.environ | {"PYTHONPATH": str(extras.ROOT / extras.ZIG.folder)}
    subprocess.run([*command, *map(str, SOURCES), "-o", str(path)], check=True, env=environment)
    return path


def test_neon_agrees_with_the_plain_build(tmp_path):
    skip_without(extras.UNICORN, *([] if ARM_GCC else [extras.ZIG]))
    path = compiled([ARM_GCC] if ARM_GCC else ZIG, tmp_path)
    with extras.UNICORN.importable():
        program = ArmProgram(path)
        assert (program.run(), program.output) == (0, "neon: 270 comparisons\n")


x86_only = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="there is no emulator with AVX-512 for this machine"
)


@x86_only
def test_avx512_agrees_with_the_plain_build(tmp_path):
    skip_without(extras.BOCHS)
    path = compiled(["g++"], tmp_path)
    with extras.BOCHS.importable():
        program = X86Program(path)
        assert (program.run(), program.output) == (0, "avx512: 270 comparisons\n")


# In a process of its own: Bochs runs one program in each.
RUN_X86 = """
import pathlib, sys
from building.x86_emulator import X86Program
program = X86Program(pathlib.Path(sys.argv[1]))
status = program.run()
print(program.output, end="")
sys.exit(status)
"""


@x86_only
def test_exp_of_avx512(tmp_path):
    skip_without(extras.BOCHS)
    path = test_exp.compiled("avx512", tmp_path, "-static", fewer=251)
    folders = [str(HERE.parent), str(extras.ROOT / extras.BOCHS.folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    completed = subprocess.run([sys.executable, "-c", RUN_X86, str(path)], env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    test_exp.assert_small(completed.stdout)
