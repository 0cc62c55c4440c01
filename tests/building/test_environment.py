"""The script behind `make`: makes the environment, and makes it anew after an interruption."""

import subprocess
import sys

import pytest


@pytest.fixture
def install(root, monkeypatch):
    """The script as a module, with its pip calls recorded and not run; making the venv stays real."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("install", root / "requirements" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.commands = []
    module.fail = None
    real = subprocess.run

    def run(command, check):
        module.commands.append(command)
        if "pip" not in command:
            return real([*command, "--without-pip"], check=check)
        if module.fail:
            raise module.fail

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def made_a_venv(install):
    return any("venv" in command for command in install.commands)


def test_a_finished_environment_is_kept_and_an_interrupted_one_made_anew(install, tmp_path):
    folder = str(tmp_path / "venv")
    install.fail = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        install.main(folder, "lock.txt")
    assert made_a_venv(install)
    for expected in (True, False):
        install.commands.clear()
        install.fail = None
        install.main(folder, "lock.txt")
        assert made_a_venv(install) is expected
        assert install.commands[-1][-2:] == ["-r", "lock.txt"]


def test_the_extra_index_is_for_the_lock_alone(install, tmp_path):
    install.main(str(tmp_path / "venv"), "lock.txt", "https://index.example/simple")
    with_index = [command for command in install.commands if "--extra-index-url" in command]
    assert with_index == [install.commands[-1]]
    assert with_index[0][-4:] == ["--extra-index-url", "https://index.example/simple", "-r", "lock.txt"]


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 13, 0), (3, 14, 1), (2, 7, 18)])
def test_a_python_that_does_not_fit(install, version):
    with pytest.raises(SystemExit, match=rf"expected: Python 3\.10(.|\n)*got: +Python {version[0]}\.{version[1]} (.|\n)*make PYTHON="):
        install.check_python(version)


def test_a_python_without_ensurepip(install, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit, match=r"expected: modules venv and ensurepip(.|\n)*apt install python3-venv"):
        install.check_python((3, 11, 2))


def test_the_locks_pin_everything(root):
    for lock in ("cpu.txt", "build.txt", "wheel-test.txt"):
        for line in (root / "requirements" / lock).read_text().splitlines():
            assert line.startswith("#") or "==" in line.split(";")[0], line
