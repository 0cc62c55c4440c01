"""What nvcc makes of the kernels: its report on registers and memory, and the machine code. Needs nvcc, no GPU."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from build_tools import flags
from build_tools.nvcc import find_nvcc

NVCC = find_nvcc(os.environ)
NVDISASM = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "nvdisasm"
KERNELS = sorted((flags.CSRC / "cuda").glob("*.cu"))
ROW_LOADS = 4 + 1  # of a thread's step through a row of logits, and of a full pack that is left over
ROWS_AT_ONCE = 4  # of a thread of the forward pass' last block, kRowsAtOnce
REGISTERS = 65536  # of a multiprocessor
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")]


@pytest.fixture(scope="module", params=flags.GPU_ARCHITECTURES)
def compiled(request, tmp_path_factory):
    """ptxas' report and the machine code of one architecture. Warnings are errors."""
    folder = tmp_path_factory.mktemp("kernels")
    options = ["-O3", f"-I{flags.CSRC}", "-Werror", "all-warnings", "--resource-usage", f"-arch=sm_{request.param}"]
    report, code = "", ""
    for source in KERNELS:
        cubin = folder / f"{source.stem}.cubin"
        command = [str(NVCC.path), f"-std={flags.CXX_STANDARD}", *options, "-cubin", "-o", str(cubin), str(source)]
        completed = subprocess.run(command, capture_output=True, text=True)
        assert completed.returncode == 0, completed.stderr
        report += completed.stderr
        code += subprocess.run([str(NVDISASM), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    return report, code


def budget(header, blocks, warps):
    """Registers a thread may take, by the blocks per multiprocessor that the source states: float32, float64."""
    sources = "".join((flags.CSRC / "cuda" / file).read_text() for file in (header, "tiling.h"))
    threads = 32 * int(re.search(rf"{warps} = (\d+);", sources)[1])
    stated = re.search(rf"{blocks} = sizeof\(S\) == sizeof\(float\) \? (\d+) : (\d+);", sources)
    # The hardware hands them out to a warp in steps of 8 a thread.
    return [REGISTERS // (threads * int(count)) // 8 * 8 for count in stated.groups()]


def budgets():
    """By a part of the kernel's name."""
    return {
        "logprob_grad_kernel": budget("logprob.cuh", "kLogprobGradBlocks", "kRowWarps"),
        "logprob_kernel": budget("logprob.cuh", "kLogprobBlocks", "kRowWarps"),
        "": budget("forward.cuh", "kForwardBlocks", "kWarpsPerBlock"),
    }


def is_double(kernel):
    return "kernelId" in kernel or "Float64" in kernel


def stores_halves_by_four(kernel):
    """8 bytes at a time, for the 16 bytes of float32 that are loaded."""
    return "Float16" in kernel and ("backward_kernel" in kernel or "Float32" in kernel)


def test_nothing_is_spilled_and_registers_stay_in_their_budget(compiled):
    """A stack frame would be local memory."""
    kernels = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info +: Used (\d+) registers",
        compiled[0],
    )
    # 4 methods x 2 types forward, 4 types backward, BAPO's 2 sums, total and bounds; rows: 4 types of logits, 6 gradients.
    assert len(kernels) == 8 + 4 + 4 + 4 + 6, compiled[0]
    limits = budgets()
    for name, *memory, registers in kernels:
        assert memory == ["0", "0", "0"], f"{name}: bytes of stack, spill stores, spill loads {memory}"
        limit = next(limits[part] for part in limits if part in name)[is_double(name)]
        assert int(registers) <= limit, f"{name}: {registers} registers"


def test_loads_and_stores_are_16_bytes_wide(compiled):
    """In the machine code, where the source has vectors of four; and no access to local memory."""
    functions = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", compiled[1], re.DOTALL | re.MULTILINE))
    kinds = ("forward_kernel", "backward_kernel", "logprob_kernel", "logprob_grad_kernel")
    assert [sum(kind in name for name in functions) for kind in kinds] == [8, 4, 4, 6]
    for name, code in functions.items():
        loads, stores = re.findall(r"\bLDG\.E\S*", code), re.findall(r"\bSTG\.E\S*", code)
        assert loads and stores and not re.search(r"\b(LDL|STL)\b", code), name
        wide_loads, wide_stores = ([one for one in all_ if ".128" in one] for all_ in (loads, stores))
        whole_stores = [one for one in stores if ".64" in one] if stores_halves_by_four(name) else wide_stores
        if "forward_kernel" in name:
            # dlogp; and of each of seven inputs a path for float32 (float64: twice two) that is one access. A row's sums: stored
            # by its warp, loaded and stored for the rows at once of the last block, and loaded for their scales.
            assert len(wide_stores) == (2 if is_double(name) else 1) + 1 + ROWS_AT_ONCE, name
            assert len(wide_loads) >= 7 + 2 * ROWS_AT_ONCE, name
        elif "backward_kernel" in name:
            assert wide_loads and whole_stores, name
        elif "logprob_kernel" in name:
            assert len(wide_loads) == ROW_LOADS, name
        elif "logprob_grad_kernel" in name:
            assert len(wide_loads) == ROW_LOADS and len(whole_stores) >= ROW_LOADS, name
