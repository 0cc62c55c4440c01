"""Which state of the project is measured."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The short hash: what the caller says in MASPO_COMMIT, for a tree that came without its history or with another; else git's."""
    if said := os.environ.get("MASPO_COMMIT"):
        return said
    try:
        completed = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        known = completed.stdout.strip()
    except FileNotFoundError:  # no git here
        known = ""
    return known or "unknown"
