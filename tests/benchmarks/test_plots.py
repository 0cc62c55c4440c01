"""The plots of the benchmarks' CSVs, drawn again from those in the repository."""

import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

import redraw  # noqa: E402

CSVS = sorted((BENCHMARKS / "results").glob("*.csv"))


@pytest.mark.parametrize("path", CSVS, ids=lambda path: path.stem)
def test_a_csv_is_drawn_again(path, tmp_path, monkeypatch):
    copy = shutil.copy(path, tmp_path)
    monkeypatch.setattr(sys, "argv", ["redraw.py", str(copy)])
    redraw.main()
    assert Path(copy).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_every_kind_of_benchmark_is_among_them():
    drawn_by = {redraw.plot_of(path.open().readline().strip().split(",")) for path in CSVS}
    kinds = (redraw.kernel_plots, redraw.linear_plots, redraw.loss_plots, redraw.verl_step_plots)
    assert drawn_by == {kind.plot for kind in kinds}


def test_a_range_of_steps_is_drawn_where_there_is_one(tmp_path):
    row = {
        "machine": "some", "threads": 2, "torch": "2.13", "commit": "1234567", "run": "maspo_ext maspo", "step_seconds": 2.0,
        "step_least": 1.9, "step_most": 2.4, "loss_stage_seconds": 2e-3, "loss_stage_quartile_1": 1.9e-3,
        "loss_stage_quartile_3": 2.2e-3, "share_of_step": 0.002,
    }  # fmt: skip
    redraw.verl_step_plots.plot([row], tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
