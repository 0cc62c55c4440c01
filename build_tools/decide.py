"""MASPO_CUDA, the torch and the nvcc of the machine: what they make of the build.

| MASPO_CUDA | nvcc found | no nvcc; torch built for CUDA 13 or later, or no torch yet | no nvcc; torch built for CUDA 12 | no nvcc; torch built for the CPU |
|---|---|---|---|---|
| auto (default) | CUDA | fetch nvcc | error | CPU |
| 1 | CUDA | fetch nvcc | fetch nvcc | fetch nvcc |
| 0 | CPU | CPU | CPU | CPU |

Only the package installer can fetch, before the build (`requirements`). Where it did not (--no-build-isolation),
`build_cuda` says what is missing. Without a torch the compiler is fetched as well: nobody knows yet which torch will come,
and a build with CUDA code serves them all.
"""

import os

from build_tools import nvcc as nvcc_module
from build_tools import torch_headers
from build_tools.errors import BuildError

SWITCH = "MASPO_CUDA"
VALUES = ("auto", "0", "1")


def cuda_mode(environ=os.environ):
    """The value of MASPO_CUDA; unset or empty is auto."""
    value = environ.get(SWITCH) or "auto"
    if value not in VALUES:
        raise BuildError(
            f"{SWITCH} has no such value",
            expected=", ".join(VALUES),
            got=repr(value),
            remedy=f"set {SWITCH} to one of them, or unset it",
        )
    return value


def requirements(mode, torch, nvcc):
    """What the package installer must fetch before the build, beyond pyproject's own list."""
    wanted = [] if torch else [torch_headers.REQUIREMENT]
    if nvcc is None and _cuda_is_due(mode, torch, nvcc):
        wanted.append(nvcc_module.REQUIREMENT)
    return wanted


def build_cuda(mode, torch, nvcc):
    """Whether to build the CUDA code, now that everything that could be fetched is there."""
    if torch is None:
        raise BuildError(
            "no torch is installed",
            expected=torch_headers.REQUIREMENT,
            got="no torch in this interpreter's site-packages",
            remedy="install torch first, or drop --no-build-isolation",
        )
    due = _cuda_is_due(mode, torch, nvcc)
    if due and nvcc is None:
        raise BuildError(
            f"{SWITCH}={mode} asks for CUDA code, but there is no CUDA compiler",
            expected="nvcc in $CUDA_HOME/bin, on the PATH or in /usr/local/cuda/bin",
            got=f"no nvcc, and torch {torch.version} {_made_for(torch)}",
            remedy=f"drop --no-build-isolation (then nvcc is fetched), or pip install '{nvcc_module.REQUIREMENT}', "
            f"or set {SWITCH}=0 to build for the CPU",
        )
    return due


def _cuda_is_due(mode, torch, nvcc):
    """Whether CUDA code is to be built, even if a compiler has to be fetched for it."""
    if mode != "auto":
        return mode == "1"
    if nvcc is not None or torch is None:
        return True
    if torch.cuda is None:
        return False
    if int(torch.cuda.split(".")[0]) < 13:
        # The fetched compiler brings the CUDA 13 runtime; the driver of a CUDA 12 machine may be too old for that.
        raise BuildError(
            "no CUDA compiler for a torch built for CUDA 12",
            expected=f"nvcc {'.'.join(map(str, nvcc_module.OLDEST))} or newer in $CUDA_HOME/bin, on the PATH or in /usr/local/cuda/bin",
            got=f"no nvcc, and torch {torch.version} {_made_for(torch)}; the package index has nvcc for CUDA 13 only",
            remedy=f"install a CUDA 12 toolkit; or, if the driver is 580 or newer, set {SWITCH}=1 to fetch CUDA 13's nvcc; "
            f"or set {SWITCH}=0 to build for the CPU",
        )
    return True


def _made_for(torch):
    return f"is built for CUDA {torch.cuda}" if torch.cuda else "is built for the CPU"
