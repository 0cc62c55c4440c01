"""What the compiled module is made of, as one number. Imports nothing of ours: others read this file by its path."""

import hashlib
from pathlib import Path

FOLDERS = ("build_tools", "csrc")
FILES = ("setup.py",)


def digest(root):
    """Of names and contents, not of times: a tree copied to another machine has new ones."""
    found = [path for folder in FOLDERS for path in Path(root, folder).rglob("*") if path.is_file()]
    found = [path for path in found if "__pycache__" not in path.parts] + [Path(root, name) for name in FILES]
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    total = hashlib.sha256()
    for name, content in sorted(contents.items()):
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
