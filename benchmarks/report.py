"""What every benchmark says of its run, and how it leaves its figures: one CSV, and a plot beside it."""

from __future__ import annotations

import csv
import datetime
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from revision import ROOT, commit


def require(device: str, script: str) -> None:
    """Stops where the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"benchmarks/{script}: --device cuda: expected a CUDA device, got none. Leave the option out to measure the CPU."
        )


def about_this_run(device: str) -> dict:
    """The first columns of every row."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{cpu} ({torch.ops.maspo.cpu_isa()})",
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def title(row: dict) -> str:
    return f"{row['machine']}, {row['threads']} threads, torch {row['torch']}, {row['commit']}"


def save(benchmark: str, rows: list[dict], plot: Callable[[list[dict], Path], None], out: Path | None) -> None:
    """Writes the rows, whose columns are those of the first, and their plot."""
    path = out or ROOT / "benchmarks" / "results" / f"{benchmark}-{rows[0]['device']}-{rows[0]['commit']}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, path.with_suffix(".png"))
    print(f"written: {path} and {path.with_suffix('.png').name}")


class Bar:
    """Progress through a known number of steps: one line that moves on a terminal, else a line a step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0

    def step(self, what: str) -> None:
        """Says what is done next."""
        filled = 20 * self.done // self.steps
        start, end = ("\r\033[K", "") if sys.stdout.isatty() else ("", "\n")
        print(f"{start}[{'#' * filled:20}] {self.done:2}/{self.steps} {what}", end=end, flush=True)
        self.done += 1

    def close(self) -> None:
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)
