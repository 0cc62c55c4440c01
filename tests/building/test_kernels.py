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
KERNELS = flags.CSRC / "cuda" / "launch.cu"
REGISTERS = 65536  # of a multiprocessor
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")]


@pytest.fixture(scope="module", params=flags.GPU_ARCHITECTURES)
def compiled(request, tmp_path_factory):
    """ptxas' report and the machine code of one architecture. Warnings are errors."""
    cubin = tmp_path_factory.mktemp("kernels") / "kernels.cubin"
    options = ["-O3", f"-I{flags.CSRC}", "-Werror", "all-warnings", "--resource-usage", f"-arch=sm_{request.param}"]
    command = [str(NVCC.path), f"-std={flags.CXX_STANDARD}", *options, "-cubin", "-o", str(cubin), str(KERNELS)]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    code = subprocess.run([str(NVDISASM), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    return completed.stderr, code


def budget():
    """Registers a thread may take, by the blocks per multiprocessor that the source states: float32, float64."""
    source = (flags.CSRC / "cuda" / "forward.cuh").read_text()
    threads = 32 * int(re.search(r"kWarpsPerBlock = (\d+);", (flags.CSRC / "cuda" / "tiling.h").read_text())[1])
    blocks = re.search(r"kForwardBlocks = sizeof\(S\) == sizeof\(float\) \? (\d+) : (\d+);", source)
    return [REGISTERS // (threads * int(count)) for count in blocks.groups()]


def test_nothing_is_spilled_and_registers_stay_in_their_budget(compiled):
    """A stack frame would be local memory."""
    kernels = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info +: Used (\d+) registers",
        compiled[0],
    )
    # 4 methods x 2 types forward, 4 types backward, BAPO's 2 sums, total and bounds.
    assert len(kernels) == 8 + 4 + 4, compiled[0]
    in_float, in_double = budget()
    for name, *memory, registers in kernels:
        assert memory == ["0", "0", "0"], f"{name}: bytes of stack, spill stores, spill loads {memory}"
        assert int(registers) <= (in_double if "kernelId" in name else in_float), f"{name}: {registers} registers"


def test_loads_and_stores_are_16_bytes_wide(compiled):
    """In the machine code, where the source has vectors of four; and no access to local memory."""
    functions = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", compiled[1], re.DOTALL | re.MULTILINE))
    assert [sum(what in name for name in functions) for what in ("forward_kernel", "backward_kernel")] == [8, 4]
    for name, code in functions.items():
        loads, stores = re.findall(r"\bLDG\.E\S*", code), re.findall(r"\bSTG\.E\S*", code)
        assert loads and stores and not re.search(r"\b(LDL|STL)\b", code), name
        wide_loads, wide_stores = ([one for one in all_ if ".128" in one] for all_ in (loads, stores))
        if "forward_kernel" in name:
            # dlogp; and of each of seven inputs a path for float32 (float64: twice two) that is one access
            assert len(wide_stores) == (2 if "kernelId" in name else 1) and len(wide_loads) >= 7, name
        elif "backward_kernelIft" in name:
            assert wide_loads and [one for one in stores if ".64" in one], name  # four halves are 8 bytes
        elif "backward_kernel" in name:
            assert wide_loads and wide_stores, name
