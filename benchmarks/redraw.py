"""Draws the plots of CSVs again, beside them: ``python benchmarks/redraw.py benchmarks/results/*.csv``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import kernel_plots
import linear_plots
import loss_plots
import verl_step_plots


def plot_of(columns: list[str]):
    """The function that draws a CSV with these columns."""
    if "over_three_gemms" in columns:
        return linear_plots.plot
    if "floor_copy" in columns:
        return kernel_plots.plot
    return verl_step_plots.plot if "loss_stage_seconds" in columns else loss_plots.plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="+")
    for path in parser.parse_args().csv:
        rows = list(csv.DictReader(path.open()))
        plot_of(list(rows[0]))(rows, path.with_suffix(".png"))
        print(f"written: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
