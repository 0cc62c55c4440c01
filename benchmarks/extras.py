"""Libraries that the environment does not have: installed each into a folder of its own, and imported from there."""

from __future__ import annotations

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
