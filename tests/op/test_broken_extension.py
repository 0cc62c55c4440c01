"""The compiled library missing or broken: the import says which, why, and what to do."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch

import maspo_ext

# An editable install adds a finder that would lend the copy the library of the source tree.
IMPORT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
import maspo_ext
"""


def import_from_copy(folder: Path, library: bytes | None, source_tree: bool) -> subprocess.CompletedProcess:
    """``import maspo_ext`` in another process, from a copy of the package whose library is missing or ``library``."""
    package = folder / "maspo_ext"
    copytree(Path(maspo_ext.__file__).parent, package, ignore=ignore_patterns("*.so", "__pycache__", "integrations"))
    if library is not None:
        (package / "_C.abi3.so").write_bytes(library)
    if source_tree:
        (folder / "csrc").mkdir()
    return subprocess.run([sys.executable, "-c", IMPORT], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "library, source_tree, cause, remedy",
    [
        (None, True, "No module named 'maspo_ext._C'", "pip install -e ."),
        (None, False, "No module named 'maspo_ext._C'", "pip install --force-reinstall --no-deps .` in a checkout"),
        (b"no library", False, "_C.abi3.so", "pip install --force-reinstall --no-deps .` in a checkout"),
    ],
)
def test_broken_extension(library, source_tree, cause, remedy, tmp_path):
    completed = import_from_copy(tmp_path, library, source_tree)
    assert completed.returncode != 0
    message = completed.stderr[completed.stderr.rindex("ImportError: maspo_ext: ") :]
    for part in (
        "maspo_ext._C cannot be loaded",
        "pid ",
        sys.executable,
        f"torch {torch.__version__}",
        "Cause: ",
        cause,
        "Remedy: ",
        remedy,
    ):
        assert part in message, part
