"""Finds nvcc and asks it for its version and for the toolkit that it belongs to."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from build_tools.ask import ask
from build_tools.errors import BuildError
from build_tools.torch_headers import site_dirs

OLDEST = (12, 8)  # the first nvcc that knows sm_100
# A set of packages that fit each other; nvcc's package alone pulls parts of a newer toolkit and then fails.
REQUIREMENT = "cuda-toolkit[nvcc,cudart]==13.0.*"
USUAL = Path("/usr/local/cuda/bin/nvcc")


@dataclass(frozen=True)
class Nvcc:
    path: Path
    version: str
    cudart_dir: Path  # holds libcudart_static.a


def find_nvcc(environ=os.environ, dirs=None):
    """$CUDA_HOME first, then the PATH, the usual place, and the package index's nvcc; None if there is none."""
    candidates = [Path(environ["CUDA_HOME"], "bin", "nvcc")] if environ.get("CUDA_HOME") else []
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    candidates += [Path(on_path)] if on_path else []
    candidates.append(USUAL)
    for folder in site_dirs() if dirs is None else dirs:
        candidates += sorted(folder.glob("nvidia/cu*/bin/nvcc"), reverse=True)
    for path in candidates:
        if path.is_file():
            return _asked(path)
    return None


def _asked(path):
    release = re.search(r"release (\d+)\.(\d+)", _output(path, "--version"))
    if release is None or tuple(map(int, release.groups())) < OLDEST:
        raise BuildError(
            "nvcc is too old for the GPU architectures of this build",
            expected="nvcc {}.{} or newer (sm_100)".format(*OLDEST),
            got=f"{path}: {'release ' + '.'.join(release.groups()) if release else 'no release number'}",
            remedy="put a newer nvcc on the PATH or set CUDA_HOME to its toolkit, or set MASPO_CUDA=0 to build for the CPU",
        )
    return Nvcc(path, ".".join(release.groups()), _cudart_dir(path))


def _cudart_dir(path):
    """The folder of the static CUDA runtime: nvcc names its toolkit itself, its path may be that of a wrapper script."""
    top = re.search(r"(?m)^#\$ TOP=(.+)$", _output(path, "--dryrun", "-x", "cu", "/dev/null"))
    root = Path(top.group(1).strip()) if top else path.parent.parent
    for folder in (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib"))):
        if (folder / "libcudart_static.a").is_file():
            return folder.resolve()
    raise BuildError(
        "nvcc has no static CUDA runtime beside it",
        expected=f"libcudart_static.a in a lib folder of {root.resolve()}",
        got="no such file",
        remedy="install the toolkit's cudart development files (cuda-cudart-dev), or set MASPO_CUDA=0 to build for the CPU",
    )


def _output(path, *arguments):
    remedy = "repair that toolkit, take it off the PATH, or set MASPO_CUDA=0 to build for the CPU"
    return ask("nvcc", [path, *arguments], remedy)
