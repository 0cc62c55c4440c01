"""The integration beside older releases of verl than that of the environment, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS.parent / "benchmarks") not in sys.path:
    sys.path.append(str(TESTS.parent / "benchmarks"))

import extras  # noqa: E402

PLUGIN = "maspo_ext.integrations.verl.plugin"
# The loss, its keys, the fused kernels; and of 0.7 the workers that it has by default.
FILES = ["test_policy_loss.py", "test_hydra_keys.py", "test_fused_kernels.py"]
LEGACY_WORKERS = "check_legacy_workers.py"
# The first with entry points for plug-ins; before, a variable of verl names the module.
FIRST_WITH_PLUGINS = "0.9.0"
CASES = {
    "0.7.0": [*FILES, LEGACY_WORKERS],
    "0.7.1": [*FILES, LEGACY_WORKERS],
    "0.8.0": FILES,
    "0.9.0": FILES,
}


@pytest.mark.slow
@pytest.mark.parametrize("release", CASES)
def test_loss_and_keys(release):
    extra = extras.OLDER_VERL[release]
    if not extra.is_installed():
        pytest.skip(f"verl {release} is not installed. {extra.remedy()}; or all extras: make extras")
    folder = str(extras.ROOT / extra.folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    env |= {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    if release < FIRST_WITH_PLUGINS:
        env["VERL_USE_EXTERNAL_MODULES"] = PLUGIN
    files = [TESTS / "verl" / name for name in CASES[release]]
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, env=env, cwd=TESTS.parent, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert f"verl {release} ({folder}" in result.stdout
