"""The rules of pyproject.toml for Python code hold."""

import subprocess
import sys

from build_tools.flags import ROOT


def test_ruff_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", ROOT], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
