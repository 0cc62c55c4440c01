"""setuptools' build_ext for the one module of this package, `maspo_ext/_C.abi3.so`."""

import os
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_tools import decide, flags, objects, sources
from build_tools.errors import BuildError
from build_tools.nvcc import find_nvcc
from build_tools.torch_headers import find_torch

MODULE = "maspo_ext._C"
INFO_FILE = "_build_info.py"


def extension():
    """The module as setuptools wants it declared; what it is made of is found when it is built."""
    return Extension(MODULE, sources=[], py_limited_api=True)


def machine(environ=os.environ):
    """(MASPO_CUDA, torch or None, nvcc or None). With MASPO_CUDA=0 nobody looks at an nvcc, so a broken one is no matter."""
    mode = decide.cuda_mode(environ)
    return mode, find_torch(), None if mode == "0" else find_nvcc(environ)


def commands(environ=os.environ):
    """The commands for this machine, or an error that says what it lacks."""
    if sys.platform != "linux":
        raise BuildError("this platform is not supported", expected="linux", got=sys.platform, remedy="build on Linux")
    mode, torch, nvcc = machine(environ)
    cuda = decide.build_cuda(mode, torch, nvcc)
    return flags.Commands(
        flags.find_cxx(environ),
        flags.find_python_headers(),
        torch,
        nvcc if cuda else None,
        environ,
        objects.max_jobs(environ),
    )


def build_info(made):
    """What was built, for the user: printed, and kept as maspo_ext/_build_info.py since pip hides a build's output."""
    cuda = made.nvcc is not None
    archs = flags.archs() if cuda else []
    code = "CPU + CUDA (" + ", ".join("PTX" if arch.startswith("compute_") else arch for arch in archs) + ")" if cuda else "CPU only"
    tool = f" with nvcc {made.nvcc.version}" if cuda else ""
    summary = f"maspo_ext: built {code} against torch {made.torch.version} headers{tool}"
    return {
        "cuda": cuda, "archs": archs, "torch_headers": made.torch.version, "summary": summary,
        "sources": sources.digest(flags.ROOT),
    }  # fmt: skip


def toolchain(made):
    """The versions behind the commands, which do not show them."""
    nvcc = made.nvcc and made.nvcc.version
    return f"torch {made.torch.version}, nvcc {nvcc}, C++ compiler {flags.cxx_version(made.cxx)}"


class BuildExtension(build_ext):
    """Compiles csrc/ with our own commands; setuptools decides where the module goes."""

    def run(self):
        super().run()
        folders = [Path(self.build_lib, "maspo_ext")]
        if self.inplace:
            folders.append(flags.ROOT / "maspo_ext")
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            text = f'"""Written by the build; read by `python -m maspo_ext`."""\n\nBUILD = {self.info!r}\n'
            (folder / INFO_FILE).write_text(text)
        print(self.info["summary"], flush=True)

    def build_extension(self, ext):
        made = commands()
        self.info = build_info(made)
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        folder = flags.ROOT / "build" / ("objects-cuda" if made.nvcc else "objects-cpu")
        files = objects.compile_all(
            made.sources(), made.compile, folder, csrc=flags.CSRC, toolchain=toolchain(made), jobs=made.jobs
        )
        objects.run(made.link(files, library), "linking failed")
