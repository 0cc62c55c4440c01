"""What `make gpu` makes of its steps, without a GPU."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = str(REPOSITORY / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)

import built_wheel  # noqa: E402
import gpu  # noqa: E402
import revision  # noqa: E402
import steps  # noqa: E402
from steps import Step  # noqa: E402


def python(code, limit=60.0, **environment):
    return Step([sys.executable, "-c", code], limit, environment)


OK, FAILS = python("print('3 passed')"), python("raise SystemExit('1 failed')")


@pytest.fixture
def run_with(monkeypatch, tmp_path):
    """``gpu.main`` with these steps on a device that is said to be there: its exit status, and the JSON it leaves."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("MASPO_COMMIT", "1234567")

    def run(steps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(gpu, "ROOT", tmp_path)
        monkeypatch.setattr(gpu, "steps_of", lambda result, wheel: steps)
        status = gpu.main()
        (written,) = tmp_path.glob("Some_GPU-torch*.json")
        return status, json.loads(written.read_text())

    return run


def test_all_steps_succeed(run_with, capsys):
    status, result = run_with({"install": OK, "tests": OK})
    assert status == 0
    assert [(step["step"], step["ok"], step["note"]) for step in result["steps"]] == [
        ("install", True, "3 passed"),
        ("tests", True, "3 passed"),
    ]
    assert "ok" in capsys.readouterr().out


def test_a_failing_step_fails_the_whole_and_the_others_still_run(run_with, capsys):
    status, result = run_with({"install": OK, "tests": FAILS, "benchmark": OK})
    assert status == 1
    assert [step["ok"] for step in result["steps"]] == [True, False, True]
    assert "FAILED" in capsys.readouterr().out


def test_steps_run_together_where_all_say_so(run_with, tmp_path):
    """Each waits for the other; the one behind them for both."""
    wait = "import pathlib, time; pathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)\nprint({!r})"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    steps = {
        "a": python(wait.format(a, b, "said by a"))._replace(together=True),
        "b": python(wait.format(b, a, "said by b"))._replace(together=True),
        "c": python(f"import os; assert os.path.exists({a!r}) and os.path.exists({b!r})"),
    }
    status, result = run_with({"install": OK, **steps})
    assert status == 0 and [step["step"] for step in result["steps"]] == ["install", "a", "b", "c"]
    (log,) = tmp_path.glob("*.log*")
    text = log.read_text()
    assert text.index("said by a") < text.index("== b:") < text.index("said by b") < text.index("== c:")


def test_nothing_runs_on_what_is_not_installed(run_with, tmp_path):
    ran = tmp_path / "ran"
    status, result = run_with({"install": FAILS, "tests": python(f"open({str(ran)!r}, 'w')")})
    assert status == 1 and len(result["steps"]) == 1 and not ran.exists()


def test_a_tool_that_is_not_there_is_a_failure(run_with):
    status, result = run_with({"install": OK, "sanitizer": Step(["no-such-sanitizer"], 60)})
    assert status == 1 and result["steps"][1]["note"] == "no-such-sanitizer is not on the PATH"


# ---- time

# Starts a process that ignores being asked to end, then waits without end, as does a test that hangs on the device.
WITH_A_CHILD = """
import subprocess, sys, time
ignore = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
child = subprocess.Popen([sys.executable, "-c", ignore + "print('child is there', flush=True); time.sleep(99)"])
print("child", child.pid, file=sys.stderr, flush=True)
time.sleep(99)
"""


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_step_that_hangs_is_stopped_with_all_that_it_started(run_with, tmp_path):
    status, result = run_with({"install": python(WITH_A_CHILD, limit=2)})
    assert status == 1 and result["steps"][0]["note"] == "stopped after 2 s: KeyboardInterrupt"
    (log,) = tmp_path.glob("*.log")
    child = int(re.search(r"child (\d+)", log.read_text())[1])  # said on stderr, before the end
    assert "child is there" in log.read_text()
    try:
        end = time.monotonic() + 5  # a killed process takes a moment to be gone
        while is_running(child) and time.monotonic() < end:
            time.sleep(0.05)
        assert not is_running(child)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("started", [signal.default_int_handler, signal.SIG_IGN], ids=["in a terminal", "in the background"])
def test_a_step_that_is_stopped_still_says_what_it_has(run_with, tmp_path, started):
    before = signal.signal(signal.SIGINT, started)
    try:
        stops_and_says(run_with, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def stops_and_says(run_with, tmp_path):
    code = "import time\ntry: time.sleep(99)\nfinally: print('2 failed', flush=True)  # before the traceback"
    _, result = run_with({"install": python(code, limit=1)})
    assert result["steps"][0]["note"] == "stopped after 1 s: KeyboardInterrupt" and result["steps"][0]["seconds"] < 10
    (log,) = tmp_path.glob("*.log")
    assert "2 failed" in log.read_text() and "KeyboardInterrupt" in log.read_text()


def test_a_step_that_cannot_be_interrupted_is_killed(run_with, monkeypatch):
    monkeypatch.setattr(steps, "GRACE", 1)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(99)"
    _, result = run_with({"install": python(code, limit=1)})
    assert not result["steps"][0]["ok"] and 2 <= result["steps"][0]["seconds"] < 10


def test_the_whole_has_a_deadline(run_with, monkeypatch):
    """A step gets what is left; what no longer fits is skipped, and that is a failure."""
    monkeypatch.setenv("MASPO_GPU_SECONDS", "3")
    monkeypatch.setattr(steps, "LEAST", 1)
    begin = time.monotonic()
    status, result = run_with({"install": OK, "tests": python("import time; time.sleep(99)"), "benchmark": OK})
    assert status == 1 and time.monotonic() - begin < 10
    assert [step["ok"] for step in result["steps"]] == [True, False, False]
    assert result["steps"][1]["note"].startswith(("stopped after 2 s", "stopped after 3 s"))
    assert result["steps"][2]["note"] == "skipped: 0 s were left, a step needs 1 at least"


def test_ten_minutes_are_enough_to_stop_the_last_step():
    assert gpu.SECONDS + steps.GRACE + 10 < 600


def test_results_are_written_after_every_step(run_with, tmp_path):
    path = tmp_path / f"{gpu.stem_of('Some GPU', torch.__version__)}.json"
    seen = f"import json; print(len(json.load(open({str(path)!r}))['steps']), 'before')"
    _, result = run_with({"install": OK, "second": python(seen), "third": python(seen)})
    assert [step["note"] for step in result["steps"]] == ["3 passed", "1 before", "2 before"]


# ---- what is left


def test_the_whole_output_is_in_the_log(run_with, tmp_path):
    code = "import sys; print('x' * 20000); print('an error', file=sys.stderr); sys.stdout.buffer.write(b'\\xff\\n')"
    long = python(code)
    run_with({"install": long, "tests": OK})
    (log,) = tmp_path.glob("*.log")
    text = log.read_text(errors="replace")
    assert "x" * 20000 in text and "an error" in text and text.index("== install: ") < text.index("== tests: ")


def test_names_are_of_plain_characters(monkeypatch):
    monkeypatch.setattr(gpu, "commit", lambda: "a b")
    assert gpu.stem_of("NVIDIA H100 80GB (SXM)", "2.11.0+cu130") == "NVIDIA_H100_80GB_-SXM--torch2.11.0-cu130-a-b"


def test_the_figures_of_the_benchmarks_are_in_the_json(run_with, tmp_path):
    path = tmp_path / f"{gpu.stem_of('Some GPU', torch.__version__)}-loss.csv"
    _, result = run_with({"install": python(f"open({str(path)!r}, 'w').write('rows,cols\\n8,512\\n')")})
    assert result["cases"] == {"loss": [{"rows": "8", "cols": "512"}]}


def test_without_out_results_lie_in_the_tree(monkeypatch):
    monkeypatch.delenv("OUT", raising=False)
    assert gpu.results_folder() == gpu.ROOT / "benchmarks" / "results"


def test_without_git_the_caller_names_the_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MASPO_COMMIT", "1234567")
    assert revision.commit() == "1234567"
    monkeypatch.delenv("MASPO_COMMIT")
    assert revision.commit() == "unknown"


# ---- which steps


def test_steps_are_what_the_folder_has(tmp_path):
    made = gpu.steps_of(tmp_path / "some.json", None)
    names = list(made)
    assert names[:2] == ["install", "tests on the GPU"] and names[-1].startswith("benchmark")
    # What is measured has the GPU to itself.
    assert [name for name in names if not made[name].together] == ["install", *(f"benchmark {name}" for name in ("kernels", "linear", "loss"))]
    assert [name for name in names if "sanitizer" in name] == names[2:6]
    for command, *_ in made.values():
        for word in command:
            if word.endswith(".py") or word.startswith("tests/"):
                assert (gpu.ROOT / word).exists(), word


def test_only_our_kernels_are_checked_but_for_initcheck():
    commands = {name.split()[-1]: step.command for name, step in gpu.sanitizer_steps().items()}
    for tool, command in commands.items():
        assert ("kns=maspo" in command) == (tool != "initcheck")
        assert ("--without-products" in command) == (tool == "initcheck")
        assert ("--without-short-memory" in command) == (tool == "racecheck")


def test_the_sanitizer_of_a_toolkit_beside_the_path_is_found(monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.touch(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.sanitizer() == str(tool)


@pytest.mark.parametrize("there", [False, True])
def test_tests_run_in_several_processes_where_that_is_installed(there, monkeypatch):
    monkeypatch.setattr(gpu, "_has", lambda module: there)
    command = gpu.test_step().command
    assert ("-n" in command) == ("tests/cupy" in command) == there


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="expected a CUDA device .* got none. Without one, run make test"):
        gpu.main()


# ---- the wheel


@pytest.fixture
def tree(tmp_path):
    """A source tree, and in its dist/ a wheel of it."""
    of_package = ("maspo_ext/ops.py", "integrations/verl/keys.yaml")
    for path in (*of_package, "csrc/core/maspo.h", "setup.py", "build_tools/flags.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"# {path}\n")
    shutil.copy(REPOSITORY / "build_tools" / "sources.py", tmp_path / "build_tools")
    (tmp_path / "dist").mkdir()
    pack(tmp_path, "maspo_ext-0.1.0-cp310-abi3-linux_x86_64.whl")
    return tmp_path


def pack(root, name, cuda=True):
    digest = runpy.run_path(str(REPOSITORY / "build_tools" / "sources.py"))["digest"]
    build = {"cuda": cuda, "sources": digest(root)}
    with zipfile.ZipFile(root / "dist" / name, "w") as archive:
        for packed, content in built_wheel.files_of_tree(root).items():
            archive.writestr(packed, content)
        archive.writestr("maspo_ext/_build_info.py", f'"""Written by the build."""\n\nBUILD = {build!r}\n')


def test_a_wheel_of_this_tree_is_installed_whatever_the_times(tree):
    for path in tree.rglob("*"):
        os.utime(path, (2e9, 2e9) if path.suffix != ".whl" else (1e9, 1e9))
    (tree / "maspo_ext" / "__pycache__").mkdir()
    (tree / "maspo_ext" / "_build_info.py").write_text("BUILD = {}")  # of another build, in place
    wheel = built_wheel.find_wheel(tree)
    assert wheel.parent == tree / "dist" and str(wheel) in gpu.install_step(wheel).command


@pytest.mark.parametrize(
    "path, said",
    [
        ("csrc/core/maspo.h", r"other sources of the compiled module \(csrc, build_tools, setup.py\)"),
        ("csrc/core/new.h", "other sources of the compiled module"),
        ("setup.py", "other sources of the compiled module"),
        ("maspo_ext/ops.py", "other maspo_ext/ops.py"),
        ("maspo_ext/new.py", "other maspo_ext/new.py"),
        ("integrations/verl/keys.yaml", "other maspo_ext/integrations/verl/keys.yaml"),
    ],
)
def test_a_stale_wheel_is_refused(path, said, tree):
    (tree / path).write_text("changed\n")
    message = f"expected a wheel of this tree .* got maspo_ext-0.1.0.*{said}.*MASPO_CUDA=1 make wheel"
    with pytest.raises(SystemExit, match=message):
        built_wheel.find_wheel(tree)


def test_a_file_that_left_the_tree_makes_a_wheel_stale(tree):
    (tree / "maspo_ext" / "ops.py").unlink()
    with pytest.raises(SystemExit, match="other maspo_ext/ops.py"):
        built_wheel.find_wheel(tree)


def test_a_wheel_without_cuda_code_is_refused(tree):
    pack(tree, "maspo_ext-0.1.0-cp310-abi3-linux_x86_64.whl", cuda=False)
    with pytest.raises(SystemExit, match="got maspo_ext-0.1.0.*no CUDA code"):
        built_wheel.find_wheel(tree)


def test_many_differences_are_said_in_short(tree):
    for index in range(9):
        (tree / "maspo_ext" / f"new_{index}.py").touch()
    with pytest.raises(SystemExit, match=r"other maspo_ext/new_2.py, and 6 more\. Build"):
        built_wheel.find_wheel(tree)


def test_of_several_wheels_that_of_this_tree_is_taken(tree):
    pack(tree, "maspo_ext-0.2.0-cp310-abi3-linux_x86_64.whl", cuda=False)
    assert built_wheel.find_wheel(tree).name.startswith("maspo_ext-0.1.0")


def test_without_a_wheel_one_is_built(tmp_path):
    assert built_wheel.find_wheel(tmp_path) is None
    assert "--no-build-isolation" in gpu.install_step(None).command


def test_a_stale_wheel_stops_the_whole_before_anything_runs(tree, run_with):
    (tree / "maspo_ext" / "ops.py").write_text("changed\n")
    with pytest.raises(SystemExit, match="other maspo_ext/ops.py"):
        run_with({"install": OK})
    assert not list(tree.glob("*.json"))
