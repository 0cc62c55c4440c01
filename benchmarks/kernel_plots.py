"""The plot of kernels.py's figures."""

from __future__ import annotations

from pathlib import Path

from report import title

LEAST_TOKENS = 2**26  # a small batch takes what its launches take
PASSES = {"forward": "tab:green", "backward": "tab:olive"}


def name_of(row: dict) -> str:
    counts = ", counts given" if row["counts"] == "given" else ""
    return f"{row['rows']} x {row['cols']} {row['ratio_mode']}\n{row['dtype']}, mask {row['mask']}{counts}"


def plot(rows: list[dict], path: Path) -> None:
    """Bars: time of forward and backward on top of each other, and the least that both can take by a copy's bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    large = [row for row in rows if int(row["rows"]) * int(row["cols"]) >= LEAST_TOKENS]
    names = list(dict.fromkeys(map(name_of, large)))
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.6 * len(names)))
    begins = dict.fromkeys(names, 0.0)
    for kind, color in PASSES.items():
        of_kind = [row for row in large if row["pass"] == kind]
        times = [1e6 * float(row["seconds"]) for row in of_kind]
        bars = axes.barh(names, times, left=[begins[name_of(row)] for row in of_kind], color=color, label=kind)
        axes.bar_label(bars, [f"{time:.0f}" for time in times], label_type="center", fontsize=8)
        for row, time in zip(of_kind, times, strict=True):
            begins[name_of(row)] += time
    both = [row for row in large if row["pass"] == "both"]
    floors = [1e6 * float(row["floor_copy"]) for row in both]
    axes.scatter(floors, [name_of(row) for row in both], marker="|", s=400, color="tab:red", zorder=3, label="bytes over a copy's bandwidth")
    for row, floor in zip(both, floors, strict=True):
        end = begins[name_of(row)]
        axes.annotate(f"{floor / end:.0%}", (end, name_of(row)), xytext=(5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set(xlabel="us of the GPU alone, and the share of a copy's bandwidth", xlim=(0, 1.12 * max(begins.values())))
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=3, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.suptitle(f"The loss' kernels\n{title(rows[0])}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
