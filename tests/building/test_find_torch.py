"""Which torch is found without importing it, and what is wrong with one that cannot be used."""

import pytest

from build_tools import torch_headers
from build_tools.errors import BuildError
from build_tools.torch_headers import find_torch


@pytest.fixture
def site(tmp_path):
    """Makes a folder with an installed torch of a version."""

    def make(name, version, cuda=None, headers=True):
        root = tmp_path / name / "torch"
        root.mkdir(parents=True)
        (root / "version.py").write_text(
            "from typing import Optional\n\n__all__ = ['__version__', 'cuda']\n"
            f"__version__ = '{version}'\ndebug = False\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
        )
        if headers:
            header = root / "include" / "torch" / "csrc" / "stable" / "library.h"
            header.parent.mkdir(parents=True)
            header.touch()
        return tmp_path / name

    return make


@pytest.mark.parametrize("version, cuda", [("2.11.0", "12.6"), ("2.13.0+cpu", None), ("2.15.0a0+git1234567", "13.2"), ("3.0.0", None)])
def test_version_and_cuda_are_read(site, version, cuda):
    folder = site("site", version, cuda)
    torch = find_torch([folder])
    assert (torch.root, torch.version, torch.cuda) == (folder / "torch", version, cuda)


def test_the_first_folder_wins(site, tmp_path):
    first, second = site("first", "2.13.0"), site("second", "2.14.0")
    assert find_torch([tmp_path, first, second]).version == "2.13.0"


def test_none(tmp_path):
    assert find_torch([tmp_path, tmp_path / "missing"]) is None


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cu117"])
def test_too_old(site, version):
    with pytest.raises(BuildError) as error:
        find_torch([site("site", version)])
    text = str(error.value)
    assert "too old" in text and "expected: torch>=2.11" in text and f"torch {version}" in text and "never replaces" in text


def test_without_headers(site):
    with pytest.raises(BuildError, match=r"no C\+\+ headers(.|\n)*library\.h(.|\n)*remedy"):
        find_torch([site("site", "2.13.0", headers=False)])


def test_the_stable_abis_target_is_the_oldest_torch_allowed():
    assert torch_headers.TARGET_VERSION == "0x020b000000000000"
    assert torch_headers.REQUIREMENT == "torch>=2.11"


def test_the_running_interpreters_torch_is_found():
    import torch

    found = find_torch()
    assert found.version == torch.__version__
    assert found.root.samefile(torch.__path__[0])
