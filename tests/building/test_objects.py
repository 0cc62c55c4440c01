"""Compiles what changed, and nothing else; a failure shows the compiler's words."""

import os
import time

import pytest
from build_tools import flags, objects
from build_tools.errors import BuildError


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
