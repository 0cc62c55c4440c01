"""What is meant by a name that is no ``ratio_mode``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from maspo_ext.errors import closest

# Papers whose clip is a mode here, under a name of its own.
CLIP_OF = {"dapo": "clip_higher", "dcpo": "dac"}
# Other papers' losses, which are not here: their names resemble those of modes, and none of these is meant.
NOT_HERE = ("cispo", "dppo", "gmpo", "gspo", "sppo", "vespo")


def mode_meant_by(name: Any, modes: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The mode that a wrong name stands for, at least as similar as ``cutoff``; None where there is none."""
    lower = str(name).lower()
    return None if lower in NOT_HERE else CLIP_OF.get(lower) or closest(name, modes, cutoff)


def remedy_for(name: Any, modes: Iterable[str], otherwise: str) -> str:
    """What to do about a ``ratio_mode`` that is none of ``modes``."""
    meant = mode_meant_by(name, modes)
    if meant is None:
        return otherwise
    whose = f", the clip of {str(name).upper()}" if str(name).lower() in CLIP_OF else ""
    return f"Did you mean {meant}{whose}?"
