"""Loading of the compiled op library, with an error that says what to do when it cannot be loaded."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from pathlib import Path

import torch  # noqa: F401  first: the library links against torch's shared libraries

_PACKAGE = Path(__file__).resolve().parent
_printed: str | None = None


def load() -> None:
    """Import ``maspo_ext._C``, whose static initialisers register ``torch.ops.maspo``.

    Raises:
        ImportError: the library is missing or does not fit the torch that is installed; names the process and the remedy.
    """
    global _printed
    try:
        importlib.import_module("maspo_ext._C")
    except ImportError as error:
        message = _explain(error)
        # verl logs the errors of plugins at DEBUG only: unprinted, the cause would be lost there. This module survives the
        # failed import of the package, and so knows what another of verl's entry points has printed in this process.
        if message != _printed:
            _printed = message
            print(message, file=sys.stderr, flush=True)
        raise ImportError(message) from error


def _explain(error: ImportError) -> str:
    where = f"host {socket.gethostname()}, pid {os.getpid()}, {sys.executable}, torch {torch.__version__}"
    if (_PACKAGE.parent / "csrc").is_dir():
        remedy = (
            f"maspo_ext was imported from its source tree {_PACKAGE.parent}, where nothing is built: "
            "run `pip install -e .` there, or start python in another folder to use the installed package."
        )
    else:
        remedy = (
            "Build it again in this environment, with torch >= 2.11: `pip install --force-reinstall --no-deps .` in a checkout of it, "
            "or the path of its wheel in place of the dot."
        )
    return (
        f"maspo_ext: the compiled op library maspo_ext._C cannot be loaded ({where}).\nCause: {error}\nRemedy: {remedy}"
    )
