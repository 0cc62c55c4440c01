"""The plot of linear.py's figures, and the goals that are drawn in it."""

from __future__ import annotations

from pathlib import Path

from report import title

FLOOR, OURS = "three GEMMs", "linear_loss"
OURS_BEGINS = "linear"
# Of OURS: time over the floor, MiB. In the GPU's case not both: with three products the gradients of all logits are kept, 2,376 MiB, or
# float32 sums of the weight's gradient, 2,079 MiB. "linear_loss (1 GiB)" makes a third of the logits again.
GOALS = {"cpu": (1.15, 64), "cuda": (1.25, 1024)}
# What a bar is called, where that is more than the peer's name in the CSV.
BAR_NAMES = {
    FLOOR: "three matrix products",
    "linear_logprob": "linear_logprob + policy_loss",
    "linear_loss": "linear_loss (maspo)",
    "linear_loss (1 GiB)": "linear_loss (maspo, 1 GiB)",
}
LEAST_MIB = 1.0  # below, there is no bar


def sizes(row: dict) -> str:
    return f"{row['tokens']} tokens x {row['hidden']} x {row['vocabulary']}, {row['dtype']}"


def plot(rows: list[dict], path: Path) -> None:
    """Bars: time over the three matrix products, with its range, and peak memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    time_goal, memory_goal = GOALS[rows[0]["device"]]
    figure, (times, memories) = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True)
    _times(times, rows)
    _memories(memories, rows)
    times.invert_yaxis()
    for axes, goal in ((times, f"{time_goal} times the products"), (memories, f"{memory_goal} MiB")):
        value = time_goal if axes is times else memory_goal
        axes.axvline(value, color="tab:red", linestyle="--", zorder=0, label=f"goal of linear_loss: {goal}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(f"Forward + backward from hidden states: {sizes(rows[0])}\n{title(rows[0])}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _times(axes, rows: list[dict]) -> None:
    values = [float(row["over_three_gemms"]) for row in rows]
    least, most = ([float(row[end]) for row in rows] for end in ("least", "most"))
    spread = [
        [value - low for value, low in zip(values, least, strict=True)],
        [high - value for value, high in zip(values, most, strict=True)],
    ]
    axes.barh(_names(rows), values, xerr=spread, color=_colors(rows), ecolor="black", capsize=3)
    _label_bars(axes, most, [f"{value:.2f}" for value in values])
    axes.set(xlabel="time over that of three matrix products: median, least to most", xlim=(0, 1.12 * max(most)))


def _memories(axes, rows: list[dict]) -> None:
    peaks = [float(row["peak_mib"]) for row in rows]
    axes.set_xscale("log")
    axes.barh(_names(rows), [peak if peak >= LEAST_MIB else 0 for peak in peaks], color=_colors(rows))
    texts = [f"{peak:,.0f}" if peak >= 10 else f"{peak:.1f}" for peak in peaks]
    _label_bars(axes, [max(peak, LEAST_MIB) for peak in peaks], texts)
    axes.set(xlabel="peak memory beyond inputs and gradients, MiB (log scale)", xlim=(LEAST_MIB, 4 * max(peaks)))


def _label_bars(axes, ends: list[float], texts: list[str]) -> None:
    """A number to the right of each bar and its range, above whatever line runs there."""
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(
            text, (end, row), xytext=(5, 0), textcoords="offset points", va="center",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip


def _names(rows: list[dict]) -> list[str]:
    return [BAR_NAMES.get(row["peer"], row["peer"]) for row in rows]


def _colors(rows: list[dict]) -> list[str]:
    return [
        "tab:gray" if row["peer"] == FLOOR else "tab:green" if row["peer"].startswith(OURS_BEGINS) else "tab:blue"
        for row in rows
    ]
