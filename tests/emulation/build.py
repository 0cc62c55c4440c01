"""g++ builds of the CUDA kernels with the host's ``cuda_runtime.h`` of this folder in place of nvcc's."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ("-std=c++17", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", f"-I{HERE}")
BUILDS = {
    "plain": ("-O1",),
    "gpu arithmetic": ("-O1",),
    "address": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "thread": ("-O1", "-fsanitize=thread"),
}
# Of the kernels, and of what compares them: a GPU's instructions (core/gpu_arithmetic.h of this folder), where in the other
# builds the same C++ makes the same bits as on the CPU.
OF_KERNELS = {"gpu arithmetic": ("-DMASPO_GPU_ARITHMETIC",)}
# The programs that run random cases, each with the launches of its kernels; and the Python module, which has all.
PROGRAMS = {"random_cases": "cuda/launch.cu", "random_rows": "cuda/launch_logprob.cu"}
MODULE = "emulated_kernels"
# What the kernels are compared with.
CPU = ("cpu/isa_plain.cpp", "cpu/finish.cpp")


def run(command: list[object], **options) -> subprocess.CompletedProcess:
    completed = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert completed.returncode == 0, f"{' '.join(map(str, command))}\n{completed.stdout}{completed.stderr}"
    return completed


def compiler() -> str:
    return os.environ.get("CXX", "g++").split()[-1]


class Builder:
    """Objects and programs of one of the BUILDS, in ``folder``; what does not depend on the kernels is compiled once."""

    def __init__(self, folder: Path, build: str) -> None:
        self.folder = folder / build.replace(" ", "_")
        self.folder.mkdir(parents=True)
        self.flags = BUILDS[build]
        self.of_kernels = OF_KERNELS.get(build, ())

    def compile(self, source: Path, name: str, csrc: Path = CSRC, *more: str) -> Path:
        made = self.folder / f"{name}.o"
        run([compiler(), *FLAGS, *self.flags, *more, f"-I{csrc}", "-x", "c++", "-c", source, "-o", made])
        return made

    def kernels(self, program: str, csrc: Path = CSRC) -> Path:
        """Those of one of the PROGRAMS, from the sources in ``csrc``."""
        return self.compile(csrc / PROGRAMS[program], f"kernels_{program}_{csrc.name}", csrc, *self.of_kernels)

    @cache
    def scheduler(self) -> Path:
        """Without the sanitizer: it is told what happens, and looks at the kernels only."""
        made = self.folder / "scheduler.o"
        run([compiler(), *FLAGS, "-O2", "-c", HERE / "scheduler.cpp", "-o", made])
        return made

    @cache
    def common(self) -> list[Path]:
        return [self.scheduler(), *(self.compile(CSRC / source, Path(source).stem) for source in CPU)]

    @cache
    def driver(self, name: str) -> Path:
        more = list(self.of_kernels)
        if name == MODULE:
            import pybind11

            more += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}", "-fvisibility=hidden"]
        return self.compile(HERE / f"{name}.cpp", name, CSRC, *more)

    def program(self, program: str, csrc: Path = CSRC) -> Path:
        """One of the PROGRAMS with the kernels of ``csrc``."""
        made = self.folder / f"{program}_{csrc.name}"
        run([compiler(), *self.flags, self.driver(program), self.kernels(program, csrc), *self.common(), "-o", made])
        return made

    def module(self) -> Path:
        """The folder of the Python module."""
        made = self.folder / f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"
        objects = [self.driver(MODULE), *map(self.kernels, PROGRAMS), *self.common()]
        run([compiler(), "-shared", *self.flags, *objects, "-o", made])
        return made.parent


def in_parallel(functions) -> list:
    """The results of the functions, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]
