"""Which state of the project is measured."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The short hash; where the tree came without its history, what the caller says in MASPO_COMMIT."""
    try:
        completed = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        known = completed.stdout.strip()
    except FileNotFoundError:  # no git here
        known = ""
    return known or os.environ.get("MASPO_COMMIT", "unknown")
