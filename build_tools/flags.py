"""The compile and link commands: every flag of the build stands here once."""

import os
import shlex
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from build_tools import torch_headers
from build_tools.ask import ask
from build_tools.errors import BuildError
from build_tools.nvcc import Nvcc

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

GPU_ARCHITECTURES = (80, 90, 100)  # A100, H100, B200; later ones run the PTX of the last
CXX_STANDARD = "c++17"
DEFINITIONS = {
    "TORCH_TARGET_VERSION": torch_headers.TARGET_VERSION,
    "Py_LIMITED_API": "0x030a0000",  # Python 3.10's
}
CUDA_DEFINITION = "MASPO_WITH_CUDA"
TORCH_LIBRARIES = ("torch_cpu",)  # exports the stable ABI, in a CPU and in a CUDA build of torch
CUDART_LIBRARIES = ("cudart_static", "dl", "rt", "pthread")
WARNINGS = ("-Wall", "-Wextra")
# The static CUDA runtime's symbols stay our own: torch has another runtime in the same process.
LINK_OPTIONS = ("-Wl,--exclude-libs,ALL",)
RPATH = "$ORIGIN/../torch/lib"  # beside the installed package; where that is not so, `import torch` comes first anyway


def archs():
    """The GPU code in the binary, as nvcc and cuobjdump call it."""
    return [f"sm_{arch}" for arch in GPU_ARCHITECTURES] + [f"compute_{GPU_ARCHITECTURES[-1]}"]


def gencode():
    """nvcc's flags for machine code of every architecture, and PTX of the newest."""
    newest = GPU_ARCHITECTURES[-1]
    targets = [(arch, f"sm_{arch}") for arch in GPU_ARCHITECTURES] + [(newest, f"compute_{newest}")]
    return [word for arch, code in targets for word in ("-gencode", f"arch=compute_{arch},code={code}")]


def find_cxx(environ=os.environ):
    """The C++ compiler as a list of words: $CXX, or the first of the usual names."""
    named = shlex.split(environ.get("CXX", ""))
    for words in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(words[0], path=environ.get("PATH")):
            return words
    raise BuildError(
        "no C++ compiler",
        expected="$CXX, or g++, c++ or clang++ on the PATH (C++17)",
        got=f"CXX={environ['CXX']!r}, which is not there" if named else "none of them",
        remedy="install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)",
    )


def cxx_version(cxx):
    """The compiler's name and version, in its own words: one that was upgraded keeps its path."""
    lines = ask("the C++ compiler", [*cxx, "--version"], "repair it, or set CXX to another").splitlines()
    return lines[0] if lines else ""


def split_cxx(cxx):
    """(the compiler alone, its options): of "ccache g++ -m64" g++ and -m64."""
    options = next((i for i, word in enumerate(cxx) if word.startswith("-")), len(cxx))
    return cxx[options - 1], cxx[options:]


def find_python_headers(folder=None):
    """The folder of Python.h."""
    folder = Path(folder or sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise BuildError(
            "Python's C headers are not installed",
            expected=f"{folder / 'Python.h'}",
            got="no such file",
            remedy="install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)",
        )
    return folder


@dataclass(frozen=True)
class Commands:
    """The commands of one build: for these headers, this compiler and, in a CUDA build, this nvcc."""

    cxx: list
    python_include: Path
    torch: torch_headers.Torch
    nvcc: Nvcc | None
    environ: dict
    jobs: int = 1

    def sources(self):
        """Every source of this build; a new file needs no registration."""
        cuda = sorted(CSRC.glob("cuda/*.cu")) if self.nvcc else []
        return sorted(CSRC.glob("*/*.cpp")) + cuda

    def compile(self, source):
        """The command for one source, short of the output file."""
        return self._nvcc(source) if source.suffix == ".cu" else self._cxx(source)

    def _cxx(self, source):
        definitions = [f"-D{name}={value}" for name, value in DEFINITIONS.items()]
        if self.nvcc:
            definitions.append(f"-D{CUDA_DEFINITION}=1")
        return [
            *self.cxx, f"-std={CXX_STANDARD}", "-O3", "-fPIC", "-fvisibility=hidden", *WARNINGS, *definitions,
            # Errors name the file: as it is called here, and not where it was built.
            f"-ffile-prefix-map={CSRC}/=", f"-I{CSRC}", "-isystem", str(self.torch.include), "-isystem", str(self.python_include),
            *shlex.split(self.environ.get("CXXFLAGS", "")), "-c", str(source),
        ]  # fmt: skip

    def _nvcc(self, source):
        compiler, options = split_cxx(self.cxx)  # -ccbin takes one program
        host = ",".join(one.replace(",", "\\,") for one in [*options, "-fPIC", "-fvisibility=hidden", *WARNINGS])
        return [
            str(self.nvcc.path), "-ccbin", compiler, f"-std={CXX_STANDARD}", "-O3", *gencode(),
            f"--threads={self.jobs}", "-cudart", "static", f"-D{CUDA_DEFINITION}=1", "-Xcompiler", host,
            f"-I{CSRC}", "-c", str(source),
        ]  # fmt: skip

    def link(self, objects, library):
        """The command that makes the Python module. Python's own symbols come from the interpreter that loads it."""
        cudart = [f"-L{self.nvcc.cudart_dir}", *_l(CUDART_LIBRARIES)] if self.nvcc else []
        return [
            *self.cxx, "-shared", *map(str, objects), "-o", str(library),
            f"-L{self.torch.lib}", *_l(TORCH_LIBRARIES), *cudart, *LINK_OPTIONS, f"-Wl,-rpath,{RPATH}",
            *shlex.split(self.environ.get("LDFLAGS", "")),
        ]  # fmt: skip


def _l(libraries):
    return [f"-l{name}" for name in libraries]
