"""The plots of loss.py's figures."""

from __future__ import annotations

import math
from pathlib import Path

from report import title

MODES_AT = (64, 4096)
CASE = "float32, forward + backward, a fifth masked as padding"
RATIO = "time of the peer / ours (median, quartiles)"
PEERS = (("eager", "o"), ("torch.compile", "^"), ("verl", "s"), ("Liger", "v"), ("TRL", "D"))


def plot(rows: list[dict], path: Path) -> None:
    """The peers' time over ours by size and by mode; our time by tokens and threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(19, 5.4))
    _by_size(axes[0], rows)
    _by_mode(axes[1], rows)
    _scaling(axes[2], rows)
    for one in axes:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend()
    figure.suptitle(title(rows[0]))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _shown(figures, **wanted):
    wanted = {"dtype": "float32", "masked": 0.2, "mask": "padding", "pass": "forward+backward", **wanted}
    return [row for row in figures if all(str(row[name]) == str(value) for name, value in wanted.items())]  # from a CSV, text


def _by_size(axes, rows) -> None:
    for peer in ("eager", "torch.compile"):
        chosen = _shown(rows, ratio_mode="maspo", peer=peer)
        for prefix, line, label in (("", "o-", peer), ("gpu_", "o--", f"{peer}, GPU alone")):
            known = [row for row in chosen if row.get(f"{prefix}peer_over_ours")]
            if known:
                sizes = [f"{row['rows']}x{row['cols']}" for row in known]
                axes.errorbar(sizes, *_ratios(known, prefix), fmt=line, capsize=3, label=label)
    axes.set(title=f"maspo by size\n{CASE}", ylabel=RATIO, xlabel="batch, sequences x tokens")
    axes.set_ylim(bottom=0)


def _by_mode(axes, rows) -> None:
    modes = list(dict.fromkeys(row["ratio_mode"] for row in _shown(rows, rows=MODES_AT[0], cols=MODES_AT[1], peer="eager")))
    for place, (peer, marker) in enumerate(PEERS):
        chosen = _shown(rows, rows=MODES_AT[0], cols=MODES_AT[1], peer=peer)
        if not chosen:  # not installed
            continue
        # Side by side, so that none hides another's quartiles.
        x = [modes.index(row["ratio_mode"]) + 0.13 * (place - len(PEERS) // 2) for row in chosen]
        axes.errorbar(x, *_ratios(chosen), fmt=marker, capsize=3, label=peer)
    axes.set_xticks(range(len(modes)), modes)
    axes.set(title="every mode at {}x{}\n{}".format(*MODES_AT, CASE), ylabel=RATIO, xlabel="ratio_mode")
    axes.set_ylim(bottom=0)


def _ratios(rows: list[dict], prefix: str = "") -> tuple[list[float], list[list[float]]]:
    """The medians, and how far the quartiles are from them."""
    low, middle, high = (
        [float(row[prefix + name]) for row in rows] for name in ("quartile_1", "peer_over_ours", "quartile_3")
    )
    return middle, [
        [m - q for m, q in zip(middle, low, strict=True)],
        [q - m for m, q in zip(middle, high, strict=True)],
    ]


def slope(tokens: list[int], seconds: list[float]) -> float:
    """Of log time against log tokens, by least squares."""
    x, y = [math.log(one) for one in tokens], [math.log(one) for one in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def _scaling(axes, rows) -> None:
    chosen = [row for row in rows if row["peer"] == "scaling"]
    for threads in sorted({row["threads"] for row in chosen}):
        of_threads = [row for row in chosen if row["threads"] == threads]
        tokens, seconds = [int(row["rows"]) * int(row["cols"]) for row in of_threads], [float(row["seconds"]) for row in of_threads]
        large = [i for i, one in enumerate(tokens) if one >= 2**16]
        label = f"{threads} thread{'s' * (int(threads) > 1)}"
        if len(large) > 1:  # else the run was stopped before
            label += f": slope {slope([tokens[i] for i in large], [seconds[i] for i in large]):.2f} from 2^16"
        axes.loglog(tokens, seconds, "o-", label=label)
    axes.set(title=f"our time, maspo, by tokens and threads\n{CASE}", xlabel="tokens", ylabel="seconds (least of the runs)")
