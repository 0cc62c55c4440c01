"""Makes the build's own modules importable, as the package installer does through pyproject's backend-path."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed maspo_ext stays the one that is imported


@pytest.fixture
def root():
    """The source tree."""
    return ROOT
