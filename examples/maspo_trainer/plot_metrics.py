"""Plot a run from verl's metrics file: reward, the method's own statistics, ratio and KL over the steps.

    python examples/maspo_trainer/plot_metrics.py outputs/train/metrics.jsonl --out outputs/train/metrics.png

A panel whose metrics the loss does not log is left out: verl's own loss has no ratio statistics.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
from metrics_file import held_out_reward_names, read_metrics, series

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402


class Panel(NamedTuple):
    """One part of the figure."""

    title: str
    unit: str
    lines: list[tuple[str, str]]  # metric, label
    note: str | None = None  # above the legend
    log: bool = False


REWARD = Panel("Reward", "mean reward", [("critic/score/mean", "training prompts")])
# What a method does to the tokens: the first of these that is in the metrics.
OF_METHOD = [
    Panel(
        "MASPO's gate on the tokens that overshoot",
        "mean gate",
        [("actor/maspo_gate_mean_pos", "advantage > 0"), ("actor/maspo_gate_mean_neg", "advantage < 0")],
        "1: no damping, or no such token",
    ),
    Panel(
        "SAPO's gate",
        "mean gate",
        [("actor/sapo_gate_mean_pos", "advantage > 0"), ("actor/sapo_gate_mean_neg", "advantage < 0")],
        "1: every ratio is 1",
    ),
    Panel(
        "DAC's bounds of the ratio",
        "mean bound",
        [("actor/dac_clip_high_mean", "upper"), ("actor/dac_clip_low_mean", "lower")],
    ),
    Panel(
        "BAPO's bounds of the ratio",
        "bound that the search found",
        [("actor/bapo_clip_high", "upper"), ("actor/bapo_clip_low", "lower")],
    ),
    Panel(
        "Clipped tokens",
        "share of the tokens",
        [("actor/pg_clipfrac", "clip"), ("actor/pg_clipfrac_lower", "dual clip")],
    ),
]
# verl averages a mini-batch's statistics over its micro-batches, and takes a step's max, min or mean of the mini-batches.
RATIO = Panel(
    "Ratio to the rollout policy, per token",
    "ratio, log scale",
    [("actor/ratio_max", "max"), ("actor/ratio_mean", "mean"), ("actor/ratio_min", "min")],
    "over mini-batches; within one,\naveraged over micro-batches",
    log=True,
)
KL = Panel(
    "KL(rollout policy || trained policy), estimated",
    "nats per token",
    [("actor/ppo_kl", "mean of old_log_prob - log_prob")],
    "an estimate from samples:\nit may be below 0",
)


def panels_of(metrics) -> list[Panel]:
    """The panels that there are metrics for."""
    held_out = [(name, f"held-out prompts: {name.split('/', 1)[1]}") for name in held_out_reward_names(metrics)]
    of_method = next(filter(lambda panel: _is_logged(panel, metrics), OF_METHOD), None)
    candidates = [REWARD._replace(lines=REWARD.lines + held_out), of_method, RATIO, KL]
    return [panel for panel in candidates if panel is not None and _is_logged(panel, metrics)]


def _is_logged(panel: Panel, metrics) -> bool:
    return any(series(metrics, name)[0] for name, _ in panel.lines)


def plot(metrics, title: str):
    """The figure of one run, as read by ``metrics_file.read_metrics``."""
    panels = panels_of(metrics)
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.5 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, metrics, panel)
    axes.flat[0].set_ylim(-0.02, 1.02)
    axes.flat[0].get_legend().set_loc("lower right")  # rewards rise: the free corner
    figure.suptitle(title)
    return figure


def _draw(axis, metrics, panel: Panel) -> None:
    for name, label in panel.lines:
        steps, values = series(metrics, name)
        if steps:
            marker = "o" if name.startswith("val-") else None
            axis.plot(steps, values, label=label, marker=marker, markersize=4)
    axis.set(title=panel.title, xlabel="training step", ylabel=panel.unit)
    axis.grid(alpha=0.3, which="both")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize="small", title=panel.note, title_fontsize="small")
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="JSONL file of verl's file logger")
    parser.add_argument("--out", type=Path, required=True, help="image to write; the suffix chooses the format")
    parser.add_argument("--title", default="Training run")
    args = parser.parse_args()
    plot(read_metrics(args.metrics), args.title).savefig(args.out, dpi=120)
    print(f"plot:       {args.out}")


if __name__ == "__main__":
    main()
