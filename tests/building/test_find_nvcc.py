"""Which nvcc is found, and what is wrong with one that cannot be used. Every nvcc here is a small script."""

import pytest

from build_tools.errors import BuildError
from build_tools.nvcc import find_nvcc


@pytest.fixture
def toolkit(tmp_path):
    """Makes a toolkit folder whose nvcc answers as the real one does."""

    def make(name, release="13.0", library_folder="lib64", status=0, top=None):
        root = tmp_path / name
        nvcc = root / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;\n'
            f'*) echo "#$ _HERE_={root}/bin" >&2; echo "#$ TOP={top or root}" >&2 ;; esac\n'
            f"exit {status}\n"
        )
        nvcc.chmod(0o755)
        if library_folder:
            library = root / library_folder / "libcudart_static.a"
            library.parent.mkdir(parents=True)
            library.touch()
        return root

    return make


def test_cuda_home_comes_before_the_path(toolkit):
    chosen, other = toolkit("chosen"), toolkit("other", "12.9")
    nvcc = find_nvcc({"CUDA_HOME": str(chosen), "PATH": str(other / "bin")}, dirs=[])
    assert nvcc.path == chosen / "bin" / "nvcc"
    assert nvcc.version == "13.0"
    assert nvcc.cudart_dir == chosen / "lib64"


def test_a_cuda_home_without_a_compiler_does_not_hide_the_path(toolkit, tmp_path):
    root = toolkit("other", "12.9")
    assert find_nvcc({"CUDA_HOME": str(tmp_path), "PATH": str(root / "bin")}, dirs=[]).path == root / "bin" / "nvcc"


def test_a_wrapper_script_is_asked_for_the_toolkit_behind_it(toolkit):
    real = toolkit("real", library_folder="targets/x86_64-linux/lib")
    wrapper = toolkit("wrapper", library_folder=None, top=real)
    nvcc = find_nvcc({"PATH": str(wrapper / "bin")}, dirs=[])
    assert nvcc.cudart_dir == real / "targets" / "x86_64-linux" / "lib"


def test_the_package_indexs_nvcc_is_found_in_site_packages(toolkit, tmp_path, monkeypatch):
    root = toolkit("site/nvidia/cu13", library_folder="lib")
    monkeypatch.setattr("build_tools.nvcc.USUAL", tmp_path / "nothing")
    nvcc = find_nvcc({"PATH": ""}, dirs=[tmp_path / "site"])
    assert nvcc.path == root / "bin" / "nvcc"
    assert nvcc.cudart_dir == root / "lib"


def test_no_nvcc_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("build_tools.nvcc.USUAL", tmp_path / "nothing")
    assert find_nvcc({"PATH": ""}, dirs=[tmp_path]) is None


@pytest.mark.parametrize("release", ["11.8", "12.4"])
def test_too_old(toolkit, release):
    root = toolkit("old", release)
    with pytest.raises(BuildError, match=rf"too old(.|\n)*expected: nvcc 12\.8(.|\n)*release {release}(.|\n)*MASPO_CUDA=0"):
        find_nvcc({"PATH": str(root / "bin")}, dirs=[])


def test_one_that_does_not_run(toolkit):
    root = toolkit("broken", status=3)
    with pytest.raises(BuildError, match=r"does not run(.|\n)*exit status 3(.|\n)*MASPO_CUDA=0"):
        find_nvcc({"PATH": str(root / "bin")}, dirs=[])


def test_one_without_the_static_runtime(toolkit):
    root = toolkit("slim", library_folder=None)
    with pytest.raises(BuildError, match=r"libcudart_static\.a(.|\n)*got: +no such file(.|\n)*cudart"):
        find_nvcc({"PATH": str(root / "bin")}, dirs=[])
