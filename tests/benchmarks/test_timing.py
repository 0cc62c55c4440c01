"""The clocks of the benchmarks and what they make of a GPU's two times, without a GPU."""

import csv
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)

import linear  # noqa: E402
import loss  # noqa: E402
import timing  # noqa: E402
from cases import SHAPES, Case, cases  # noqa: E402


class Device:
    """A stream of torch.cuda that notes what is queued, and whose sleep is over when it is asked, or is not."""

    def __init__(self, sleep_is_over):
        self.sleep_is_over, self.queued = iter(sleep_is_over), []

    def __getattr__(self, name):
        return lambda *_, **__: self.queued.append(name)

    def zero_(self):
        self.queued.append("flush")

    def Event(self, enable_timing):
        device = self

        class Event:
            def record(self):
                device.queued.append("event")

            def query(self):
                return next(device.sleep_is_over)

            def synchronize(self):
                device.queued.append("wait")

            def elapsed_time(self, end):
                return 2.0  # milliseconds

        return Event()


@pytest.fixture
def device_of(monkeypatch):
    def made(*sleep_is_over):
        device = Device(sleep_is_over)
        monkeypatch.setattr(timing.torch, "cuda", device)
        monkeypatch.setattr(timing, "cache_flush", lambda: device)
        return device

    return made


ONE_RUN = ["flush", "_sleep", "event", "call", "event", "wait"]


def test_the_gpu_sleeps_until_a_call_is_queued(device_of):
    device = device_of(False)
    assert timing.GpuClock()(lambda: device.queued.append("call")) == 2e-3
    assert device.queued == ONE_RUN


def test_a_call_that_was_queued_too_late_is_run_again(device_of):
    device = device_of(True, False)
    assert timing.GpuClock()(lambda: device.queued.append("call")) == 2e-3
    assert device.queued == 2 * ONE_RUN


def test_of_a_call_that_waits_for_the_device_the_gpu_clock_knows_nothing(device_of):
    device_of(*3 * [True])
    assert math.isnan(timing.GpuClock()(lambda: None))


def test_the_wall_clock_waits_for_the_gpu_at_both_ends(device_of):
    device = device_of()
    assert timing.Clock("cuda")(lambda: device.queued.append("call")) > 0
    assert device.queued == ["flush", "synchronize", "call", "synchronize"]


def test_a_cpu_has_one_clock():
    assert list(timing.clocks_of("cpu")) == [""] and timing.clocks_of("cpu")[""](lambda: None) < 1


@pytest.fixture
def rows_of(monkeypatch, tmp_path):
    """The CSV of ``loss.py`` with one case and these clocks beside the wall clock."""
    monkeypatch.setattr(loss, "triad_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(loss, "library_functions", dict)
    monkeypatch.setattr(loss, "scaling", lambda *_: iter([(1, Case(1, 1), dict.fromkeys(loss.clocks_of("cpu"), 3e-6))]))
    monkeypatch.setattr(loss, "SECONDS", {"cpu": 0.0})

    def made(clocks, todo=(Case(2, 3, mode="ppo"),)):
        monkeypatch.setattr(loss, "clocks_of", lambda device: {"": timing.Clock("cpu")} | clocks)
        monkeypatch.setattr(loss, "cases", lambda device: todo)
        path = tmp_path / "loss.csv"
        monkeypatch.setattr(sys, "argv", ["loss.py", "--out", str(path)])
        loss.main()
        with path.open() as file:
            return list(csv.DictReader(file))

    return made


FIGURES = ["seconds", "peer_over_ours", "quartile_1", "quartile_3"]


def test_columns_of_a_cpu(rows_of):
    rows = rows_of({})
    columns = list(rows[0])
    assert columns[columns.index("peer") :] == ["peer", *FIGURES, "floor_seconds"]
    assert [row["peer"] for row in rows] == ["maspo_ext", "eager", "scaling"]
    assert rows[2]["seconds"] == "3.000e-06" and rows[2]["peer_over_ours"] == ""


def test_columns_of_a_gpu_say_which_time_is_whose(rows_of, capsys):
    rows = rows_of({"gpu_": lambda call: call() or 1e-3})
    columns = list(rows[0])
    assert columns[columns.index("peer") :] == ["peer", *FIGURES, *(f"gpu_{name}" for name in FIGURES), "floor_seconds"]
    assert [row["gpu_seconds"] for row in rows] == ["1.000e-03", "1.000e-03", "3.000e-06"]
    assert float(rows[0]["seconds"]) != 1e-3 and rows[1]["gpu_peer_over_ours"] == "1.000"
    assert "GPU alone" in capsys.readouterr().out


def test_a_peer_that_the_gpu_clock_cannot_tell_has_empty_columns(rows_of):
    times = iter([1e-3] * 6 + [math.nan] + [1e-3] * 99)
    rows = rows_of({"gpu_": lambda call: call() or next(times)})
    assert [rows[1][f"gpu_{name}"] for name in FIGURES] == [""] * 4 and all(rows[1][name] for name in FIGURES)


def test_a_benchmark_that_is_stopped_leaves_what_it_has(rows_of, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loss, "scaling", stop)
    with pytest.raises(KeyboardInterrupt):
        rows_of({})
    assert "eager" in (tmp_path / "loss.csv").read_text() and (tmp_path / "loss.png").exists()


def test_few_cases_are_compiled_on_a_gpu():
    on_gpu = [case for case in cases("cuda") if case.is_compiled("cuda")]
    assert len(on_gpu) == 3 and all(case.with_backward for case in on_gpu)
    of_cpu = [case for case in cases("cpu") if case.is_compiled("cpu")]
    assert len(of_cpu) == 1 + 5 * (len(SHAPES["cpu"]) - 1)


def test_goals_are_said_to_be_reached_only_if_they_are():
    assert linear.against_goal("1.11", 1.15, "times three GEMMs") == "1.11 times three GEMMs (at most 1.15: reached)"
    assert linear.against_goal("2200.0", 1024, "MiB") == "2200.0 MiB (at most 1024: not reached)"
