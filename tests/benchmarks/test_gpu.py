"""What `make gpu` makes of its steps, without a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)

import gpu  # noqa: E402


@pytest.fixture
def run_with(monkeypatch, tmp_path):
    """``gpu.main`` with these steps on a device that is said to be there: its exit status, and the JSON that it leaves."""

    def run(steps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(gpu, "ROOT", tmp_path)
        monkeypatch.setattr(gpu, "RESULTS", tmp_path)
        monkeypatch.setattr(gpu, "commands", lambda path: steps)
        status = gpu.main()
        (written,) = tmp_path.glob(f"Some_GPU-torch{torch.__version__}-*.json")
        return status, json.loads(written.read_text())

    return run


OK, FAILS = [sys.executable, "-c", "print('3 passed')"], [sys.executable, "-c", "raise SystemExit('1 failed')"]


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


def test_nothing_runs_on_what_is_not_installed(run_with):
    status, result = run_with({"install": FAILS, "tests": OK})
    assert status == 1 and len(result["steps"]) == 1


def test_a_tool_that_is_not_there_is_a_failure(run_with):
    status, result = run_with({"install": OK, "sanitizer": ["no-such-sanitizer"]})
    assert status == 1 and result["steps"][1]["note"] == "no-such-sanitizer is not on the PATH"


def test_a_step_that_hangs_is_stopped(run_with, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 1)
    status, result = run_with({"install": [sys.executable, "-c", "import time; time.sleep(60)"]})
    assert status == 1 and "stopped after 1 s" in result["steps"][0]["note"]


def test_steps_are_what_the_folder_has(tmp_path):
    steps = gpu.commands(tmp_path / "some.json")
    assert list(steps)[0] == "install" and {f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")} < set(steps)
    for command in steps.values():
        for word in command:
            if word.endswith(".py") or word.startswith("tests/"):
                assert (gpu.ROOT / word).exists(), word


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a CUDA device .* got none. Without one, run make test"):
        gpu.main()
