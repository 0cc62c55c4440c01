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
METHODS = len(re.findall(r"X\(kMethod", (flags.CSRC / "core" / "methods.h").read_text()))
# AnySteps of float32 and float64, PlainSteps of float32 and bfloat16 with masks of 1, 4 and 8 bytes.
FORWARD_KERNELS = (2 + 2 * 3) * METHODS
# GroupSteps of float32 and bfloat16.
GROUP_KERNELS = 2 * METHODS
ROW_LOADS = 4 + 1  # of a thread's step through a row of logits, and of a full pack that is left over
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


def stated(header, name):
    """What the source says for float32 and for float64."""
    source = (flags.CSRC / "cuda" / header).read_text()
    return [int(one) for one in re.search(rf"{name} = sizeof\(S\) == sizeof\(float\) \? (\d+) : (\d+);", source).groups()]


def registers_for(warps):
    """That a thread may take where a multiprocessor is to run so many warps. The hardware hands them out in steps of 8."""
    return min(REGISTERS // (32 * warps) // 8 * 8, 255)


def budgets():
    """By a part of the kernel's name: for float32 and for float64."""
    row_warps = int(re.search(r"kRowWarps = (\d+);", (flags.CSRC / "cuda" / "logprob.cuh").read_text())[1])
    of_rows = {
        f"{kernel}_kernel": [registers_for(row_warps * blocks) for blocks in stated("logprob.cuh", name)]
        for kernel, name in (("logprob_grad", "kLogprobGradBlocks"), ("logprob", "kLogprobBlocks"))
    }
    source = (flags.CSRC / "cuda" / "scale.cuh").read_text()
    threads, blocks = (int(re.search(rf"{name} = (\d+);", source)[1]) for name in ("kScaleThreads", "kScaleBlocks"))
    of_scale = {"scale_kernel": [registers_for(threads // 32 * blocks)] * 2}
    return of_rows | of_scale | {"": [registers_for(warps) for warps in stated("tiling.h", "kMostWarps")]}


def is_double(kernel):
    return "kernelId" in kernel or "AnyStepsId" in kernel or "Float64" in kernel


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
    # Forward by stretches and by groups, 4 types backward, BAPO's 2 sums, total and bounds; rows: 4 types of logits, 6 gradients, 4 to scale.
    assert len(kernels) == FORWARD_KERNELS + GROUP_KERNELS + 4 + 4 + 4 + 6 + 4, compiled[0]
    limits = budgets()
    for name, *memory, registers in kernels:
        assert memory == ["0", "0", "0"], f"{name}: bytes of stack, spill stores, spill loads {memory}"
        limit = next(limits[part] for part in limits if part in name)[is_double(name)]
        assert int(registers) <= limit, f"{name}: {registers} registers"


def test_loads_and_stores_are_16_bytes_wide(compiled):
    """In the machine code, where the source has vectors of four; and no access to local memory."""
    functions = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", compiled[1], re.DOTALL | re.MULTILINE))
    kinds = ("forward_kernel", "forward_groups_kernel", "backward_kernel", "logprob_kernel", "logprob_grad_kernel", "scale_kernel")
    assert [sum(kind in name for name in functions) for kind in kinds] == [FORWARD_KERNELS, GROUP_KERNELS, 4, 4, 6, 4]
    for name, code in functions.items():
        loads, stores = re.findall(r"\bLDG\.E\S*", code), re.findall(r"\bSTG\.E\S*", code)
        assert loads and stores and not re.search(r"\b(LDL|STL)\b", code), name
        wide_loads, wide_stores = ([one for one in all_ if ".128" in one] for all_ in (loads, stores))
        whole_stores = [one for one in stores if ".64" in one] if stores_halves_by_four(name) else wide_stores
        if "forward_kernel" in name:
            # dlogp, and a piece's sums, stored by its warp and loaded by the last block. Of any input there is a path for float32
            # (float64: twice two) that is one access; of three plain ones, too, of float32, twice each.
            assert len(wide_stores) >= 2 + is_double(name), name
            assert len(wide_loads) >= (7 if "AnySteps" in name else 1 if "BFloat16" in name else 6) + 1, name
        elif "forward_groups_kernel" in name:
            # A group's mask, before the first, of the second and in the loop; of float32 three inputs of two steps and of a group.
            assert len(wide_loads) >= 3 + (0 if "BFloat16" in name else 3 * (2 + 4)), name
            assert len(wide_stores) >= 4, name
        elif "backward_kernel" in name or "scale_kernel" in name:
            assert wide_loads and whole_stores, name
        elif "logprob_kernel" in name:
            assert len(wide_loads) == ROW_LOADS, name
        elif "logprob_grad_kernel" in name:
            assert len(wide_loads) == ROW_LOADS and len(whole_stores) >= ROW_LOADS, name
