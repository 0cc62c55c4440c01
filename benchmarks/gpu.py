"""Everything that needs a GPU, in one command: `make gpu`. Offline, on what the machine has: torch, pytest, matplotlib, the CUDA toolkit.

Installs the wheel in dist/ (or builds one), runs the ops' tests on the GPU, compute-sanitizer on a small set, and the benchmarks;
writes benchmarks/results/<gpu>-torch<version>-<commit>.json, the benchmarks' .csv and .png beside it; ends with a table, and exits 1
if anything failed.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from revision import ROOT, commit

RESULTS = ROOT / "benchmarks" / "results"
PYTHON = sys.executable
LIMIT = 300  # seconds a step


def install_command() -> list[str]:
    wheels = sorted((ROOT / "dist").glob("maspo_ext-*.whl"))
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
    return [*pip, str(wheels[-1])] if wheels else [*pip, "--no-build-isolation", str(ROOT)]


def sanitizer_commands() -> dict[str, list[str]]:
    script = [PYTHON, "tests/gpu/sanitized.py"]
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    return {
        f"compute-sanitizer {tool}": ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *script]
        for tool in tools
    }


def figures_of(result: Path) -> dict[str, Path]:
    """By benchmark, its CSV."""
    return {name: result.with_name(f"{result.stem}-{name}.csv") for name in ("loss", "linear")}


def commands(result: Path) -> dict[str, list[str]]:
    pytest = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    cupy = ["tests/cupy"] if _has("cupy") else []
    return {
        "install": install_command(),
        "tests on the GPU": [*pytest, "tests/gpu", "tests/op", "tests/logits", *cupy],
        **sanitizer_commands(),
        **{
            f"benchmark {name}": [PYTHON, f"benchmarks/{name}.py", "--device", "cuda", "--out", str(path)]
            for name, path in figures_of(result).items()
        },
    }


def _has(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def run(name: str, command: list[str]) -> dict:
    print(f"== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    if shutil.which(command[0]) is None:
        return {"step": name, "ok": False, "seconds": 0.0, "note": f"{command[0]} is not on the PATH"}
    # Each allocation from the driver, so that initcheck and memcheck see the bounds of each tensor.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if command[0] == "compute-sanitizer" else {}
    try:
        completed = subprocess.run(
            command, cwd=ROOT, env=os.environ | uncached, timeout=LIMIT, capture_output=True, text=True
        )
        output, ok = completed.stdout + completed.stderr, completed.returncode == 0
    except subprocess.TimeoutExpired as expired:
        output, ok = f"{expired.stdout or ''}\nstopped after {LIMIT} s", False
    print(output[-6000:] if not ok else output[-1500:], flush=True)
    note = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    return {"step": name, "ok": ok, "seconds": round(time.monotonic() - started, 1), "note": note.strip("= ")[:90]}


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "maspo_ext: make gpu: expected a CUDA device and a CUDA build of torch, got none. Without one, run make test."
        )
    name = torch.cuda.get_device_name().replace(" ", "_")
    stem = f"{name}-torch{torch.__version__}-{commit()}"
    RESULTS.mkdir(exist_ok=True)
    result_path = RESULTS / f"{stem}.json"
    steps = []
    for step, command in commands(result_path).items():
        steps.append(run(step, command))
        if step == "install" and not steps[-1]["ok"]:
            break
    cases = {
        name: list(csv.DictReader(path.open())) for name, path in figures_of(result_path).items() if path.exists()
    }
    result = {"gpu": name, "torch": torch.__version__, "commit": commit(), "steps": steps, "cases": cases}
    result_path.write_text(json.dumps(result, indent=1))
    print()
    for step in steps:
        print(f"{'ok    ' if step['ok'] else 'FAILED'} {step['seconds']:7.1f} s  {step['step']:28} {step['note']}")
    print(f"written: {result_path.relative_to(ROOT)}")
    return 0 if all(step["ok"] for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
