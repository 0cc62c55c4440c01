"""What MASPO_CUDA, the installed torch and the found nvcc make of a build."""

from pathlib import Path

import pytest

from build_tools import decide
from build_tools.errors import BuildError
from build_tools.nvcc import REQUIREMENT as FETCH_NVCC
from build_tools.nvcc import Nvcc
from build_tools.torch_headers import REQUIREMENT as FETCH_TORCH
from build_tools.torch_headers import Torch

NVCC = Nvcc(Path("/toolkit/bin/nvcc"), "13.0", Path("/toolkit/lib"))
CPU = Torch(Path("/torch"), "2.13.0+cpu", None)
CUDA13 = Torch(Path("/torch"), "2.14.1", "13.0")
CUDA12 = Torch(Path("/torch"), "2.11.0", "12.6")


@pytest.mark.parametrize(
    "mode, torch, nvcc, fetched, cuda",
    [
        ("auto", CPU, NVCC, [], True),
        ("auto", CPU, None, [], False),
        ("auto", CUDA13, NVCC, [], True),
        ("auto", CUDA13, None, [FETCH_NVCC], True),
        ("auto", CUDA12, NVCC, [], True),
        ("auto", None, NVCC, [FETCH_TORCH], True),
        ("auto", None, None, [FETCH_TORCH, FETCH_NVCC], True),
        ("1", CPU, NVCC, [], True),
        ("1", CPU, None, [FETCH_NVCC], True),
        ("1", CUDA12, None, [FETCH_NVCC], True),
        ("1", None, None, [FETCH_TORCH, FETCH_NVCC], True),
        ("0", CPU, None, [], False),
        ("0", CPU, NVCC, [], False),
        ("0", CUDA13, NVCC, [], False),
        ("0", CUDA12, None, [], False),
        ("0", None, None, [FETCH_TORCH], False),
    ],
)
def test_what_is_fetched_and_then_built(mode, torch, nvcc, fetched, cuda):
    assert decide.requirements(mode, torch, nvcc) == fetched
    # After the fetching:
    torch = torch or CPU
    nvcc = nvcc or (NVCC if FETCH_NVCC in fetched else None)
    assert decide.build_cuda(mode, torch, nvcc) is cuda


def test_a_cuda_12_torch_without_a_compiler_is_the_users_choice():
    for ask in (decide.requirements, decide.build_cuda):
        with pytest.raises(BuildError, match=r"CUDA 12(.|\n)*expected: nvcc 12\.8(.|\n)*2\.11\.0(.|\n)*MASPO_CUDA=1(.|\n)*MASPO_CUDA=0"):
            ask("auto", CUDA12, None)


@pytest.mark.parametrize("mode, torch", [("1", CPU), ("1", CUDA13), ("auto", CUDA13)])
def test_cuda_without_a_compiler_is_an_error_where_nothing_fetched_it(mode, torch):
    with pytest.raises(BuildError, match=rf"MASPO_CUDA={mode}(.|\n)*expected: nvcc(.|\n)*got: +no nvcc(.|\n)*--no-build-isolation(.|\n)*MASPO_CUDA=0"):
        decide.build_cuda(mode, torch, None)


def test_no_torch_is_an_error_where_nothing_fetched_it():
    with pytest.raises(BuildError, match=r"no torch(.|\n)*expected: torch>=2\.11(.|\n)*install torch first"):
        decide.build_cuda("auto", None, NVCC)


@pytest.mark.parametrize("environ, mode", [({}, "auto"), ({"MASPO_CUDA": ""}, "auto"), ({"MASPO_CUDA": "0"}, "0"), ({"MASPO_CUDA": "1"}, "1")])
def test_the_switch(environ, mode):
    assert decide.cuda_mode(environ) == mode


@pytest.mark.parametrize("value", ["foo", "yes", "AUTO", "2"])
def test_any_other_value_of_the_switch_is_an_error(value):
    with pytest.raises(BuildError, match=rf"MASPO_CUDA(.|\n)*expected: auto, 0, 1(.|\n)*got: +'{value}'(.|\n)*remedy"):
        decide.cuda_mode({"MASPO_CUDA": value})
