"""The one form of all messages: what, expected, got and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch


def message(what: str, expected: str, got: Any, remedy: str) -> str:
    """The text of every error: of what, what was expected and what came, and a sentence that says what to do."""
    return f"maspo_ext: {what}: expected {expected}, got {got}. {remedy}"


def closest(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that a misspelt one resembles most, if there is one. torch.compile cannot trace how: there is none for it."""
    if torch.compiler.is_compiling():
        return None
    return next(iter(get_close_matches(str(name).lower(), list(names), n=1, cutoff=cutoff)), None)


def did_you_mean(name: Any, names: Iterable[str], otherwise: str) -> str:
    """A remedy for a misspelt name."""
    close = closest(name, names)
    return otherwise if close is None else f"Did you mean {close}?"
