"""What nvcc makes of the kernels: its report on registers and memory, and its vector loads and stores. Needs nvcc, no GPU."""

import os
import re
import subprocess

import pytest

from build_tools import flags
from build_tools.nvcc import find_nvcc

NVCC = find_nvcc(os.environ)
KERNELS = flags.CSRC / "cuda" / "launch.cu"
REGISTERS = 65536  # of a multiprocessor
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")]


def compile_kernels(output, *options):
    command = [
        str(NVCC.path),
        f"-std={flags.CXX_STANDARD}",
        "-O3",
        f"-I{flags.CSRC}",
        "-Werror",
        "all-warnings",
        *options,
    ]
    completed = subprocess.run([*command, "-o", str(output), str(KERNELS)], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stderr


def budget(header, constant):
    """Registers a thread may take, by the blocks per multiprocessor that the source states: float32, float64."""
    source = (flags.CSRC / "cuda" / header).read_text()
    threads = 32 * int(re.search(r"kWarpsPerBlock = (\d+);", (flags.CSRC / "cuda" / "tiling.h").read_text())[1])
    blocks = re.search(rf"{constant} = sizeof\(S\) == sizeof\(float\) \? (\d+) : (\d+);", source)
    return [REGISTERS // (threads * int(count)) for count in blocks.groups()]


def test_nothing_is_spilled_and_registers_stay_in_their_budget(tmp_path):
    """Warnings are errors; a stack frame would be local memory."""
    report = compile_kernels(tmp_path / "kernels.o", "-c", "--resource-usage", *flags.gencode())
    kernels = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info +: Used (\d+) registers",
        report,
    )
    # 4 methods x 2 types forward, 4 types backward, BAPO's 2 sums, total and bounds; each for every architecture.
    assert len(kernels) == (8 + 4 + 4) * len(flags.GPU_ARCHITECTURES), report
    in_float, in_double = budget("forward.cuh", "kForwardBlocks")
    for name, stack, stores, loads, registers in kernels:
        assert (stack, stores, loads) == ("0", "0", "0"), (
            f"{name}: {stack} bytes of stack, {stores} and {loads} bytes spilled"
        )
        assert int(registers) <= (in_double if re.search(r"kernelId", name) else in_float), (
            f"{name}: {registers} registers"
        )


def entries(ptx):
    """The text of every kernel by its name."""
    return dict(re.findall(r"\.entry (\w+)\((.*?)\n}\n", ptx, re.DOTALL))


@pytest.mark.parametrize("architecture", flags.GPU_ARCHITECTURES)
def test_loads_and_stores_are_16_bytes_wide(architecture, tmp_path):
    compile_kernels(tmp_path / "kernels.ptx", "-ptx", f"-arch=sm_{architecture}")
    kernels = entries((tmp_path / "kernels.ptx").read_text())
    for name, text in kernels.items():
        stores = set(re.findall(r"st\.global\.cg\.(\S+)", text))
        loads = set(re.findall(r"ld\.global\.(v\d\.\w+)", text))
        of_floats = loads & {"v4.f32", "v4.u32"}
        if "forward_kernel" in name:
            # dlogp out; float32, bfloat16 or float16, and float64 (twice two, or four) in
            assert stores == {"v4.u32"} and of_floats and "v4.u16" in loads and loads & {"v2.f64", "v4.f64"}, name
        elif "backward_kernelIft" in name:
            assert stores == {"v2.u32"} and of_floats, name
        elif "backward_kernel" in name:
            assert stores == {"v4.u32"} and (of_floats or loads & {"v2.f64", "v4.f64"}), name
    assert [sum(what in name for name in kernels) for what in ("forward_kernel", "backward_kernel")] == [8, 4]
