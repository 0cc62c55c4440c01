"""The plot of verl_step.py's figures."""

from __future__ import annotations

from pathlib import Path

from report import title

# By the prefix of their columns: where a figure's range begins and ends, and what that is called.
RANGES = {
    "loss_stage_": ("quartile_1", "quartile_3", "median, quartiles"),
    "step_": ("least", "most", "median, least to most"),
}


def plot(rows: list[dict], path: Path) -> None:
    """Bars: the loss stage, and the step, each with the range of its runs where the file has one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (stages, steps) = plt.subplots(1, 2, figsize=(13, 4.2), sharey=True)
    shares = [f"{float(row['share_of_step']):.2%} of the step" for row in rows]
    _bars(stages, rows, "loss_stage_", "microseconds", 1e6, shares)
    stages.set(title="Loss stage of one micro-batch, forward + backward")
    stages.set_xlim(right=1.4 * stages.get_xlim()[1])
    _bars(steps, rows, "step_", "seconds", 1, [f"{float(row['step_seconds']):.2f}" for row in rows])
    steps.set(title="Training step")
    steps.set_xlim(right=1.15 * steps.get_xlim()[1])
    stages.invert_yaxis()
    figure.suptitle(title(rows[0]), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes, rows: list[dict], prefix: str, unit: str, per_second: float, labels: list[str]) -> None:
    low, high, what = RANGES[prefix]
    values, starts, ends = (
        [float(row[column]) * per_second if column in row else None for row in rows]
        for column in (f"{prefix}seconds", prefix + low, prefix + high)
    )
    has_range = None not in starts  # files of old have none
    errors = None
    if has_range:
        errors = [[v - s for v, s in zip(values, starts, strict=True)], [e - v for v, e in zip(values, ends, strict=True)]]
    names = [row["run"] for row in rows]
    colors = ["tab:green" if name.startswith("maspo_ext") else "tab:blue" for name in names]
    axes.barh(names, values, xerr=errors, color=colors, ecolor="black", capsize=3)
    for row, (end, label) in enumerate(zip(ends if has_range else values, labels, strict=True)):
        axes.annotate(label, (end, row), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlabel(f"{unit} ({what if has_range else 'median; the file has no range'})")
