"""Libraries that the environment does not have, since only some tests and benchmarks want them: installed each into a folder of
its own, and imported from there.

    python benchmarks/extras.py    installs those that are missing (make extras)
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from revision import ROOT


class Extra(NamedTuple):
    module: str  # to import
    folder: str  # below ROOT
    requirement: str  # for pip

    def remedy(self) -> str:
        """How to have it."""
        return f"To have it: pip install --no-deps --target {self.folder} {self.requirement}"

    def is_found(self) -> bool:
        with self.importable():
            return importlib.util.find_spec(self.module) is not None

    def is_installed(self) -> bool:
        """In its folder, as the requirement says."""
        found = importlib.metadata.distributions(path=[str(ROOT / self.folder)])
        return self.requirement in {f"{one.name.replace('_', '-')}=={one.version}" for one in found}

    def install(self) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*command, "--target", str(ROOT / self.folder), self.requirement], check=True)

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Within it the library can be imported; one that the environment has goes before that of the folder.

        Afterwards nobody finds a trace of it: others behave otherwise where they see it (verl that finds Liger without triton
        cannot import its FusedLinearForPPO). What was imported from it goes on working.
        """
        path, before = str(ROOT / self.folder), set(sys.modules)
        sys.path.append(path)
        try:
            yield
        finally:
            sys.path.remove(path)
            for name in set(sys.modules) - before:
                if name.partition(".")[0] == self.module:
                    del sys.modules[name]


LIGER = Extra("liger_kernel", "build/liger", "liger-kernel==0.8.5")
TRL = Extra("trl", "build/trl", "trl==1.16.0")
# Releases of verl before that of the environment.
OLDER_VERL = {release: Extra("verl", f"build/verl-{release}", f"verl=={release}") for release in ("0.7.0", "0.7.1", "0.8.0", "0.9.0")}
# Emulators of other processors, and a compiler for them.
BOCHS = Extra("bochscpu", "build/bochs", "bochscpu-python==0.4.0")
UNICORN = Extra("unicorn", "build/unicorn", "unicorn==2.1.4")
ZIG = Extra("ziglang", "build/zig", "ziglang==0.17.1")

if __name__ == "__main__":
    for extra in (LIGER, TRL, *OLDER_VERL.values(), BOCHS, UNICORN, ZIG):
        if not extra.is_installed():
            print(f"installing {extra.requirement} into {extra.folder}", flush=True)
            extra.install()
