"""Every source file is on the map of docs/design.md, or in the list at the head of its folder: a newcomer finds what it is for."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "docs" / "design.md").read_text().split("## Where things live")[1].split("\n## ")[0]
# The packages whose modules are listed in their __init__.py.
LISTED = ("maspo_ext/logits", "integrations/verl", "integrations/verl/cpu", "integrations/trl", "build_tools")
WITHOUT_A_WORD = {"__init__.py"}


def on_the_map(name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}", MAP) is not None


SOURCES = [
    path.relative_to(ROOT)
    for folder, suffixes in (("csrc", (".h", ".cuh", ".cpp", ".cu")), ("maspo_ext", (".py",)))
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in suffixes and not str(path.relative_to(ROOT)).startswith((*LISTED, "maspo_ext/integrations"))
    and path.name not in (*WITHOUT_A_WORD, "_build_info.py")  # which the build writes
]  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_source_is_on_the_map(path):
    folders = [f"{folder}/" for folder in path.parents if len(folder.parts) > 1]
    assert on_the_map(path.name) or any(f"`{folder}`" in MAP for folder in folders), f"{path}: what is it for? docs/design.md does not say"


@pytest.mark.parametrize("package", LISTED)
def test_a_package_lists_its_modules(package):
    folder = ROOT / package
    listed = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    modules = [path.stem for path in sorted(folder.glob("*.py")) if path.name not in WITHOUT_A_WORD]
    missing = [name for name in modules if not re.search(rf"`\.{name}`|^ *{name}\.py ", listed, re.MULTILINE)]
    assert not missing, f"{package}/__init__.py does not say what {', '.join(missing)} is for"


def test_what_the_map_names_is_there():
    """Each file or folder in the right column: by its path, or by its name in the folder of the path before."""
    wrong = []
    for row in re.findall(r"^\| .*? \| (.*) \|$", MAP, re.MULTILINE):
        folder = Path()
        for name in re.findall(r"`([\w/.]+)`", row):
            path = Path(name) if "/" in name or (ROOT / name).exists() else folder / name
            folder = path if name.endswith("/") else path.parent
            if re.search(r"\.\w+$|/$", name) and not (ROOT / path).exists():
                wrong.append(str(path))
    assert not wrong, f"docs/design.md names {', '.join(wrong)}, which do not exist"
