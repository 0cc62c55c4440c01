"""The CPU engine for 64-bit ARM: compiled by a cross compiler, and run under an emulator."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_tools.flags import CSRC, CXX_STANDARD, WARNINGS

from .arm_emulator import Program

HERE = Path(__file__).parent
GCC = shutil.which("aarch64-linux-gnu-g++")
NEEDED = ["unicorn"] if GCC else ["ziglang", "unicorn"]
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
COMPILER = [GCC] if GCC else [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {' and no '.join(MISSING)}; to have it: .venv/bin/pip install {' '.join(MISSING)}"
    ),
]


def test_it_compiles_and_agrees_with_the_plain_build(tmp_path):
    program, sources = tmp_path / "isas_agree", [*sorted(CSRC.glob("cpu/*.cpp")), HERE / "isas_agree.cpp"]
    command = [*COMPILER, "-static", f"-std={CXX_STANDARD}", "-O2", *WARNINGS, "-Werror", f"-I{CSRC}"]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    emulated = Program(program)
    status = emulated.run()
    assert (status, emulated.output) == (0, "neon: 270 comparisons\n")
