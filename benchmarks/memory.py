"""Peak memory of a call: the most that it holds at a time beyond what was there before, less the outputs that it leaves.

On a GPU torch counts. On a CPU nobody does, so the kernel's count of resident pages is read, in a fresh process for each
call. What makes that count mean something:

- Nothing of an earlier peer is in the process: neither free memory to take up unseen, nor a high-water mark.
- A call before it, of a smaller batch if that will do, pays for what the process keeps from then on: threads, compiled
  code. A peer could hide a workspace there, so what is left of it is a figure, too: ``kept``.
- ``FRESH`` has glibc map every block of 64 KiB or more by itself, and unmap it when it is freed. By default it raises that
  threshold up to 32 MiB as a program runs, and then hands out pages that are resident already.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

FRESH = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Memory(NamedTuple):
    """In bytes."""

    peak: int  # beyond inputs and outputs
    kept: int  # left behind by the call before


def measure(warm_up: Callable[[], object], call: Callable[[], Iterable[torch.Tensor]], device: str) -> Memory:
    """Of a call that returns its outputs; on a CPU in a process made by ``in_fresh_process``."""
    before = _kept(device)
    warm_up()
    kept, start = _kept(device) - before, _held(device)
    _forget_peak(device)
    outputs = sum(output.nbytes for output in call())
    return Memory(_peak(device) - start - outputs, kept)


def in_fresh_process(command: list[str]) -> Memory:
    """What a Python script prints as its last line, by ``tell``."""
    completed = subprocess.run([sys.executable, *command], env=os.environ | FRESH, capture_output=True, text=True)
    if completed.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: expected exit status 0, got {completed.returncode}\n{completed.stderr}"
        )
    return Memory(*json.loads(completed.stdout.splitlines()[-1]))


def tell(memory: Memory) -> None:
    print(json.dumps(memory))


def _kept(device: str) -> int:
    # Not VmRSS: the first call of anything touches pages of the libraries' files, which nobody allocated.
    return torch.cuda.memory_allocated() if device == "cuda" else _of_status("RssAnon")


def _held(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _of_status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _of_status("VmHWM")


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS


def _of_status(field: str) -> int:
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])
