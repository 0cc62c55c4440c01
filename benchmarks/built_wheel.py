"""The wheel in dist/, for a machine without a package index: whether it is of this tree, and has CUDA code."""

from __future__ import annotations

import ast
import runpy
import sys
import zipfile
from pathlib import Path

INFO = "maspo_ext/_build_info.py"
PACKED = (".py", ".yaml", ".json", ".typed")
# The package's folders by their name in the wheel; the second is a link in the tree.
FOLDERS = {"maspo_ext": "maspo_ext", "integrations": "maspo_ext/integrations"}


def find_wheel(root: Path) -> Path | None:
    """The wheel in dist/, or None where there is none; ends the program where what is there is not of this tree."""
    wheels = sorted((root / "dist").glob("maspo_ext-*.whl"))
    if not wheels:
        return None
    wrong = {wheel: what_is_wrong(wheel, root) for wheel in wheels}
    for wheel, reasons in wrong.items():
        if not reasons:
            return wheel
    said = "; ".join(f"{wheel.name}: {in_short(reasons)}" for wheel, reasons in wrong.items())
    sys.exit(
        f"maspo_ext: expected a wheel of this tree with CUDA code in dist/, got {said}. "
        "Build it anew: MASPO_CUDA=1 make wheel"
    )


def what_is_wrong(wheel: Path, root: Path) -> list[str]:
    """By contents, since a copied tree's times say nothing: the Python files, and the digest of what was compiled."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("maspo_ext/") and name.endswith(PACKED)]
        packed = {name: archive.read(name) for name in names}
    text = packed.pop(INFO).decode()
    build = ast.literal_eval(text[text.index("{") :])
    reasons = [] if build["cuda"] else ["no CUDA code"]
    if build.get("sources") != runpy.run_path(str(root / "build_tools" / "sources.py"))["digest"](root):
        reasons.append("other sources of the compiled module (csrc, build_tools, setup.py)")
    tree = files_of_tree(root)
    return reasons + [f"other {name}" for name in sorted(tree | packed) if tree.get(name) != packed.get(name)]


def in_short(reasons: list[str]) -> str:
    more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
    return ", ".join(reasons[:3] + more)


def files_of_tree(root: Path) -> dict[str, bytes]:
    """What a wheel of this tree has of Python and data, by the name in it."""
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in (root / folder).rglob("*"):
            name = f"{prefix}/{path.relative_to(root / folder).as_posix()}"
            if path.suffix in PACKED and name != INFO:
                found[name] = path.read_bytes()
    return found
