"""Say what a run achieved: held-out reward at the start and at the end, and the time. Exits 1 if the goal is missed.

The goal (from at most 0.35 to at least 0.8) belongs to the arithmetic task; for other data the rewards are only
reported. All are means over the held-out prompts, before the first training step and after the last.

    python examples/maspo_trainer/summarize_run.py outputs/train/metrics.jsonl
"""

import argparse
import sys
from pathlib import Path

from metrics_file import held_out_reward_names, read_metrics, series

ARITHMETIC = "maspo/arithmetic"
START_AT_MOST = 0.35
END_AT_LEAST = 0.8


def missed_goal(name: str, start: float, end: float) -> str | None:
    """What is wrong with the held-out reward ``name``, None if nothing is."""
    if ARITHMETIC not in name:
        return None
    if start > START_AT_MOST:
        return (
            f"{name}: the warm start already has {start:.3f}, expected at most {START_AT_MOST}, "
            "so a rise would prove little; warm-start with fewer --steps or another SEED."
        )
    if end < END_AT_LEAST:
        return (
            f"{name}: ended at {end:.3f}, expected at least {END_AT_LEAST}; "
            "train longer (trainer.total_training_steps) or look at the plot for a collapse."
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="JSONL file of verl's file logger")
    parser.add_argument("--seconds", type=float, help="how long the run took, to be printed")
    args = parser.parse_args()

    metrics = read_metrics(args.metrics)
    names = held_out_reward_names(metrics)
    if not names:
        sys.exit(f"{args.metrics}: no held-out reward; set trainer.test_freq and data.val_files.")
    problems, has_goal = [], False
    print(f"steps:      {metrics[-1][0]}")
    for name in names:
        _, values = series(metrics, name)
        print(f"held-out:   {values[0]:.3f} -> {values[-1]:.3f}  ({name})")
        print("            mean reward on prompts that are never trained on: before the first step -> after the last")
        problems.append(missed_goal(name, values[0], values[-1]))
        has_goal = has_goal or ARITHMETIC in name
    if args.seconds is not None:
        print(f"time:       {args.seconds:.0f} s")
    problems = [problem for problem in problems if problem]
    if problems:
        sys.exit("goal missed: " + "\n".join(problems))
    if has_goal:
        bounds = f"at most {START_AT_MOST} before, at least {END_AT_LEAST} after"
        print(f"goal:       reached ({bounds}; the reward is the share of right answers)")


if __name__ == "__main__":
    main()
