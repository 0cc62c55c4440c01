"""Finds the installed torch without importing it.

Inside pip's build isolation the user's site-packages are off `sys.path`, but the interpreter is the user's own: `sysconfig`
still names the folder. Importing torch there would take seconds and could fail for want of its dependencies; its
version file says all that the build needs.
"""

import re
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from build_tools.errors import BuildError

OLDEST = (2, 11)  # the first torch whose stable ABI has all that csrc/torch uses
REQUIREMENT = "torch>={}.{}".format(*OLDEST)
# The same version as torch's headers encode it: major in the top byte, minor in the next. The build's result uses nothing newer.
TARGET_VERSION = f"0x{OLDEST[0]:02x}{OLDEST[1]:02x}" + "0" * 12


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str
    cuda: str | None  # the CUDA version that it was built for, e.g. "13.0"

    @property
    def include(self):
        return self.root / "include"

    @property
    def lib(self):
        return self.root / "lib"


def site_dirs():
    """Folders that can hold installed packages, those of the running build first."""
    dirs = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if _sees_base_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        dirs += [sysconfig.get_path("purelib", vars=base), site.getusersitepackages()]
    return [Path(folder) for folder in dict.fromkeys(dirs) if folder]


def _sees_base_packages():
    """Whether this interpreter uses the system's packages: it is no venv, or one made with --system-site-packages."""
    config = Path(sys.prefix, "pyvenv.cfg")
    if not config.exists():
        return True
    return re.search(r"(?m)^include-system-site-packages\s*=\s*true", config.read_text()) is not None


def find_torch(dirs=None):
    """The torch that a program of this interpreter would import, or None. An unusable one is an error."""
    for folder in site_dirs() if dirs is None else dirs:
        version_file = folder / "torch" / "version.py"
        if version_file.is_file():
            return _checked(version_file.parent, version_file.read_text())
    return None


def _checked(root, version_text):
    version = _assigned("__version__", version_text)
    release = re.match(r"(\d+)\.(\d+)", version or "")
    if release is None or tuple(map(int, release.groups())) < OLDEST:
        raise BuildError(
            "the installed torch is too old",
            expected=REQUIREMENT,
            got=f"torch {version} in {root}",
            remedy=f"upgrade it yourself (pip install '{REQUIREMENT}'); this build never replaces your torch",
        )
    torch = Torch(root, version, _assigned("cuda", version_text))
    header = torch.include / "torch" / "csrc" / "stable" / "library.h"
    if not header.is_file():
        raise BuildError(
            "the installed torch has no C++ headers",
            expected=f"{header}",
            got="no such file",
            remedy="install torch from a wheel (pip install --force-reinstall torch)",
        )
    return torch


def _assigned(name, text):
    """The string assigned to `name` in torch/version.py, or None."""
    found = re.search(rf"""(?m)^{name}\s*(?::[^=]*)?=\s*['"]([^'"]+)['"]""", text)
    return found and found.group(1)
