"""Runs one process per rank, and shows the output of one that fails."""

import os
import subprocess
import sys


def run_ranks(arguments_of_ranks, environments=None, timeout=300):
    """Python with each rank's arguments; ``environments``: what to set in each one's, or to unset where it is None."""
    environments = environments or [{}] * len(arguments_of_ranks)
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={name: value for name, value in (os.environ | {"OMP_NUM_THREADS": "1"} | environment).items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for arguments, environment in zip(arguments_of_ranks, environments, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
