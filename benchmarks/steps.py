"""One step of a longer run: a command with a limit on its time, whose whole output goes into a log."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, repeat
from pathlib import Path
from typing import NamedTuple

from revision import ROOT

GRACE = 15  # seconds between the interrupt, on which a program still says and writes what it has, and its end
LEAST = 10  # seconds below which no step is begun


class Step(NamedTuple):
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = {}  # beside ours
    together: bool = False  # with its neighbours of which that holds, too: its time tells nothing


def run_all(steps: dict[str, Step], deadline: float, log: Path) -> Iterator[dict]:
    """The outcomes, in the order of the steps: one after the other, or those together of which that holds."""
    for together, group in groupby(steps.items(), lambda item: item[1].together):
        if together:
            yield from _run_together(dict(group), deadline - time.monotonic(), log)
        else:
            for name, step in group:
                yield run(name, step, deadline - time.monotonic(), log)


def _run_together(steps: dict[str, Step], seconds_left: float, log: Path) -> Iterator[dict]:
    """Each with a log of its own, which goes into ``log`` when its turn has come."""
    logs = [log.with_name(f"{log.name}.{index}") for index in range(len(steps))]
    with ThreadPoolExecutor(len(steps)) as pool:
        outcomes = pool.map(run, steps, steps.values(), repeat(seconds_left), logs)
        for outcome, of_step in zip(outcomes, logs, strict=True):
            if of_step.exists():
                with log.open("ab") as whole:
                    whole.write(of_step.read_bytes())
                of_step.unlink()
            yield outcome


def run(name: str, step: Step, seconds_left: float, log: Path) -> dict:
    """Its outcome, in a row of the table; no step takes longer than what is left, and ``GRACE``."""
    if seconds_left < LEAST:
        left = max(seconds_left, 0)
        return _outcome(name, False, 0, f"skipped: {left:.0f} s were left, a step needs {LEAST} at least")
    if shutil.which(step.command[0]) is None:
        return _outcome(name, False, 0, f"{step.command[0]} is not on the PATH")
    print(f"== {name}: {' '.join(step.command)}", flush=True)
    seconds, started = min(step.limit, seconds_left), time.monotonic()
    with log.open("ab") as file:  # not a pipe: what is written is there, even if nobody lives to read it
        file.write(f"\n== {name}: {' '.join(step.command)}\n".encode())
        file.flush()
        begin = file.tell()
        status = _finished(step, seconds, file)
    output = log.read_bytes()[begin:].decode(errors="replace")
    print(output[-6000:] if status != 0 else output[-1500:], flush=True)
    said = next((line for line in reversed(output.splitlines()) if line.strip()), "").strip("= ")
    note = f"stopped after {seconds:.0f} s: {said}" if status is None else said
    return _outcome(name, status == 0, time.monotonic() - started, note[:90])


def _outcome(name: str, ok: bool, seconds: float, note: str) -> dict:
    return {"step": name, "ok": ok, "seconds": round(seconds, 1), "note": note}


def _interruptible() -> None:
    """A shell has what it starts in the background ignore interrupts, and so would a step."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _finished(step: Step, seconds: float, output) -> int | None:
    """The exit status, or None of a step that had to be stopped."""
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=os.environ | step.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_interruptible,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # to it alone: it knows how to end those that it started
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started and left behind
        except ProcessLookupError:
            pass
        process.wait()
