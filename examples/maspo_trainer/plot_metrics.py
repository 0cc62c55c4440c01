"""Plot a run from verl's metrics file: reward, MASPO's gate, ratio and KL over the steps.

    python examples/maspo_trainer/plot_metrics.py outputs/train/metrics.jsonl --out outputs/train/metrics.png

A run with verl's own loss has no gate and no ratio statistics; those panels say so.
"""

import argparse
from pathlib import Path

import matplotlib
from metrics_file import held_out_reward_names, read_metrics, series

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

# panel title, y label, (metric, label) of each line
PANELS = [
    ("Reward", "mean reward", [("critic/score/mean", "training prompts")]),
    (
        "MASPO gate on gated tokens",
        "mean gate",
        [("actor/maspo_gate_mean_pos", "advantage > 0"), ("actor/maspo_gate_mean_neg", "advantage < 0")],
    ),
    (
        "Ratio to the rollout policy",
        "ratio",
        [("actor/ratio_max", "max"), ("actor/ratio_mean", "mean"), ("actor/ratio_min", "min")],
    ),
    ("KL to the rollout policy", "estimated KL", [("actor/ppo_kl", "ppo_kl")]),
]


def plot(metrics, title: str):
    """The figure of one run, as read by ``metrics_file.read_metrics``."""
    held_out = [(name, f"held-out: {name.split('/', 1)[1]}") for name in held_out_reward_names(metrics)]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True, layout="constrained")
    for axis, (heading, unit, lines) in zip(axes.flat, PANELS, strict=True):
        if heading == "Reward":
            lines = lines + held_out
            axis.set_ylim(-0.02, 1.02)
        _draw(axis, metrics, lines)
        axis.set_title(heading)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].legend(fontsize="small", loc="lower right")  # rewards rise: the free corner
    axes[1, 0].set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("training step")
    figure.suptitle(title)
    return figure


def _draw(axis, metrics, lines) -> None:
    drawn = False
    for name, label in lines:
        steps, values = series(metrics, name)
        if steps:
            marker = "o" if name.startswith("val-") else None
            axis.plot(steps, values, label=label, marker=marker, markersize=4)
            drawn = True
    if drawn:
        axis.legend(fontsize="small")
    else:
        axis.text(0.5, 0.5, "not logged by this loss", transform=axis.transAxes, ha="center", color="gray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="JSONL file of verl's file logger")
    parser.add_argument("--out", type=Path, required=True, help="image to write; the suffix chooses the format")
    parser.add_argument("--title", default="Training run")
    args = parser.parse_args()
    plot(read_metrics(args.metrics), args.title).savefig(args.out, dpi=120)
    print(f"plot written to {args.out}")


if __name__ == "__main__":
    main()
