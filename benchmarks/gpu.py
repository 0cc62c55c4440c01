"""Everything that needs a GPU, in one command: `make gpu`. Offline, on what the machine has: torch, pytest, CUDA.

Installs the wheel in dist/ (or builds one) into build/gpu, where it is found before any other; runs the ops' tests on
the GPU and, beside them, compute-sanitizer on a small set; then the benchmarks, with the GPU to themselves. Writes <gpu>-torch<version>-<commit>.json after every
step, and beside it a .log with the steps' whole output and the benchmarks' .csv and .png: into $OUT, or where that is
not set into benchmarks/results. Ends with a table, and exits 1 if anything failed.

The whole takes at most $MASPO_GPU_SECONDS (570), and a few seconds to stop a step: the most telling steps come first,
and what no longer fits is skipped, which is a failure.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from built_wheel import find_wheel
from revision import ROOT, commit
from steps import Step, run_all

SECONDS = 570  # a machine that is lent for ten minutes ends them without asking
PYTHON = sys.executable
INSTALLED = ROOT / "build" / "gpu"
PROCESSES = 12  # of pytest, where it can have several


def install_step(wheel: Path | None) -> Step:
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--upgrade", "--target", str(INSTALLED)]
    if wheel:
        return Step([*pip, str(wheel)], limit=60)
    every_core = {"MAX_JOBS": str(os.cpu_count() or 1)}
    return Step([*pip, "--no-build-isolation", str(ROOT)], limit=400, environment=every_core)


def test_step() -> Step:
    """-P: pytest run as a module would find the source tree first, which has no compiled module."""
    pytest = [PYTHON, "-P", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    pytest += ["--continue-on-collection-errors", "-o", "faulthandler_timeout=60"]
    # A file's tests share a process: what one keeps from test to test is made once.
    several = ["-n", str(PROCESSES), "--dist", "loadfile"] if _has("xdist") else []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // PROCESSES))} if several else {}
    cupy = ["tests/cupy"] if _has("cupy") else []
    folders = ["tests/gpu", "tests/op", "tests/logits", *cupy]
    return Step([*pytest, *several, "-m", "cuda", *folders], limit=240, environment=threads, together=True)


def _has(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def figures_of(result: Path) -> dict[str, Path]:
    """By benchmark, its CSV."""
    return {name: result.with_name(f"{result.stem}-{name}.csv") for name in ("kernels", "linear", "loss")}


def benchmark_steps(result: Path) -> dict[str, Step]:
    limits = {"kernels": 60, "linear": 90, "loss": 150}
    device = {"kernels": []}  # for which there is but one
    return {
        f"benchmark {name}": Step(
            [PYTHON, f"benchmarks/{name}.py", *device.get(name, ["--device", "cuda"]), "--out", str(path)],
            limit=limits[name],
        )
        for name, path in figures_of(result).items()
    }


def sanitizer() -> str:
    """compute-sanitizer of the PATH, or of the toolkit's folder, which often is not on it."""
    folders = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME') or '/usr/local/cuda'}/bin"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders)) or "compute-sanitizer"


def sanitizer_steps() -> dict[str, Step]:
    """Of our kernels alone: torch's and cuBLAS's are not ours to check, and take minutes.

    But initcheck has to see every write, and so all kernels; matrix products, the slowest, are left out there. And racecheck
    breaks down in one of them.
    """
    ours = ["--kernel-name", "kns=maspo"]  # a part of the mangled name
    tools = {
        # torch asks the driver for things that it may not have, and goes on without them.
        "memcheck": ([*ours, "--report-api-errors", "no"], []),
        "racecheck": (ours, ["--without-short-memory"]),
        "initcheck": ([], ["--without-products"]),
        "synccheck": (ours, []),
    }
    # Each allocation from the driver, so that initcheck and memcheck see the bounds of each tensor.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return {
        f"compute-sanitizer {tool}": Step(
            [sanitizer(), "--tool", tool, "--error-exitcode", "9", *options, PYTHON, "tests/gpu/sanitized.py", *less],
            limit=120,
            environment=uncached,
            together=True,
        )
        for tool, (options, less) in tools.items()
    }


def steps_of(result: Path, wheel: Path | None) -> dict[str, Step]:
    """By name, in their order."""
    return {
        "install": install_step(wheel),
        "tests on the GPU": test_step(),
        **sanitizer_steps(),
        **benchmark_steps(result),
    }


def stem_of(gpu: str, torch_version: str) -> str:
    """The results' name, of the characters that every file system and every copying program takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{gpu.replace(' ', '_')}-torch{torch_version}-{commit()}")


def results_folder() -> Path:
    return Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")


def write(result: Path, about: dict, outcomes: list[dict]) -> None:
    """What is known so far."""
    paths = figures_of(result)
    cases = {name: list(csv.DictReader(path.open())) for name, path in paths.items() if path.exists()}
    result.write_text(json.dumps({**about, "steps": outcomes, "cases": cases}, indent=1))


def main() -> int:
    deadline = time.monotonic() + float(os.environ.get("MASPO_GPU_SECONDS") or SECONDS)
    wheel = find_wheel(ROOT)  # before the GPU: one that will not do is better known where there is none
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "maspo_ext: make gpu: expected a CUDA device and a CUDA build of torch, got none. Without one, run make test."
        )
    folder = results_folder()
    result = folder / f"{stem_of(torch.cuda.get_device_name(), torch.__version__)}.json"
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit()}
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{result.stem}.log"
    log.unlink(missing_ok=True)
    # Found by every process of every step, whatever is installed beside it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
    outcomes = []
    for outcome in run_all(steps_of(result, wheel), deadline, log):
        outcomes.append(outcome)
        write(result, about, outcomes)
        if outcome["step"] == "install" and not outcome["ok"]:
            break
    print()
    for one in outcomes:
        print(f"{'ok    ' if one['ok'] else 'FAILED'} {one['seconds']:7.1f} s  {one['step']:28} {one['note']}")
    print(f"written: {result}")
    return 0 if all(one["ok"] for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
