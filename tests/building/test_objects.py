"""Compiles what changed, and nothing else; a failure shows the compiler's words."""

import os
import time
from pathlib import Path

import pytest

from build_tools import extension, flags, objects
from build_tools.errors import BuildError
from build_tools.nvcc import Nvcc
from build_tools.torch_headers import Torch


@pytest.fixture
def project(tmp_path):
    """Two sources, one of which includes a header; `build` returns the names of what was compiled."""
    csrc = tmp_path / "csrc"
    (csrc / "core").mkdir(parents=True)
    (csrc / "core" / "one.h").write_text("inline int one() { return 1; }\n")
    (csrc / "core" / "a.cpp").write_text('#include "core/one.h"\nint a() { return one(); }\n')
    (csrc / "core" / "b.cpp").write_text("int b() { return 2; }\n")
    folder = tmp_path / "objects"

    class Project:
        path = csrc

        def build(self, *flag, toolchain="torch 1"):
            def command(source):
                return [*flags.find_cxx(), f"-I{csrc}", *flag, "-c", str(source)]

            before = self.times()
            sources = sorted(csrc.rglob("*.cpp"))
            made = objects.compile_all(sources, command, folder, csrc=csrc, toolchain=toolchain, jobs=2)
            assert sorted(made) == sorted(path for path in folder.rglob("*.o"))
            return [path.name for path in sorted(made) if before.get(path) != path.stat().st_mtime_ns]

        def times(self):
            return {path: path.stat().st_mtime_ns for path in folder.rglob("*.o")}

    return Project()


def edit(path):
    """Changes a file, surely later than what was built from it."""
    path.write_text(path.read_text() + "\n")
    later = time.time_ns() + 1_000_000
    os.utime(path, ns=(later, later))
    time.sleep(0.01)


def test_only_what_changed(project):
    assert project.build() == ["a.cpp.o", "b.cpp.o"]
    assert project.build() == []
    edit(project.path / "core" / "b.cpp")
    assert project.build() == ["b.cpp.o"]


def test_a_header_concerns_every_source(project):
    project.build()
    edit(project.path / "core" / "one.h")
    assert project.build() == ["a.cpp.o", "b.cpp.o"]


def test_other_flags_or_another_torch_concern_every_source(project):
    project.build()
    assert project.build("-O1") == ["a.cpp.o", "b.cpp.o"]
    assert project.build("-O1", toolchain="torch 2") == ["a.cpp.o", "b.cpp.o"]
    assert project.build("-O1", toolchain="torch 2") == []


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("step", ["unlink", "replace", "write_text"])
def test_an_interruption_leaves_no_object_of_other_flags(project, step, number, monkeypatch):
    (project.path / "core" / "b.cpp").write_text("int b() { return NUMBER; }\n")

    def b_of(number):
        project.build(f"-DNUMBER={number}")
        return next(path for path in project.times() if path.name == "b.cpp.o").read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    right = {number: b_of(number) for number in (2, 1)}
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            b_of(2)
    assert b_of(number) == right[number]


def commands(*cxx, nvcc=None):
    return flags.Commands([*cxx], Path("/python"), Torch(Path("/torch"), "2.13.0", None), nvcc, {})


@pytest.fixture
def compiler(tmp_path):
    """Makes a compiler, always the same file, of which only this is known: what it does with --version."""

    def make(script):
        path = tmp_path / "cxx"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_a_compiler_that_is_upgraded_in_place_is_another_one(compiler):
    before = extension.toolchain(commands(compiler("echo g++ 12.2; echo Copyright"), "-m64"))
    assert before == "torch 2.13.0, nvcc None, C++ compiler g++ 12.2"
    assert extension.toolchain(commands(compiler("echo g++ 12.3; echo Copyright"), "-m64")) != before


def test_a_compiler_that_does_not_run(compiler):
    with pytest.raises(BuildError, match=r"C\+\+ compiler does not run(.|\n)*cxx --version(.|\n)*status 3: no licence(.|\n)*set CXX"):
        extension.toolchain(commands(compiler("echo no licence; exit 3")))
    with pytest.raises(BuildError, match=r"C\+\+ compiler does not run(.|\n)*got: +.*No such file(.|\n)*set CXX"):
        extension.toolchain(commands("/no/such/compiler"))


@pytest.mark.parametrize(
    "cxx, program, options",
    [
        (["g++"], "g++", ""),
        (["ccache", "g++"], "g++", ""),
        (["g++", "-m64"], "g++", "-m64,"),
        (["ccache", "g++", "-m64", "-isystem", "/a,b"], "g++", "-m64,-isystem,/a\\,b,"),
    ],
)
def test_the_compiler_behind_nvcc_and_its_options(cxx, program, options):
    command = commands(*cxx, nvcc=Nvcc(Path("/cuda/bin/nvcc"), "13.0", Path("/cuda/lib"))).compile(Path("launch.cu"))
    assert command[command.index("-ccbin") + 1] == program
    assert command[command.index("-Xcompiler") + 1].startswith(f"{options}-fPIC,")


def test_a_failure_shows_the_command_and_the_compilers_words(project):
    (project.path / "core" / "b.cpp").write_text("int b() { return undeclared_name; }\n")
    with pytest.raises(BuildError, match=r"compiling b\.cpp failed(.|\n)*expected: success of: .*b\.cpp(.|\n)*undeclared_name"):
        project.build()
    (project.path / "core" / "b.cpp").write_text("int b() { return 2; }\n")
    assert "b.cpp.o" in project.build()


def test_no_compiler():
    with pytest.raises(BuildError, match=r"no C\+\+ compiler(.|\n)*expected(.|\n)*apt install g\+\+"):
        flags.find_cxx({"PATH": ""})
    with pytest.raises(BuildError, match=r"got: +CXX='no-such-compiler -m64', which is not there"):
        flags.find_cxx({"PATH": os.environ["PATH"], "CXX": "no-such-compiler -m64"})


def test_no_python_headers(tmp_path):
    with pytest.raises(BuildError, match=r"Python's C headers(.|\n)*Python\.h(.|\n)*python3-dev"):
        flags.find_python_headers(tmp_path)


@pytest.mark.parametrize("environ, jobs", [({"MAX_JOBS": "1"}, 1), ({"MAX_JOBS": "12"}, 12), ({}, min(os.cpu_count(), 4))])
def test_number_of_jobs(environ, jobs):
    assert objects.max_jobs(environ) == jobs


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_wrong_number_of_jobs(text):
    with pytest.raises(BuildError, match=rf"MAX_JOBS(.|\n)*expected: a whole number(.|\n)*'{text}'"):
        objects.max_jobs({"MAX_JOBS": text})
