"""Run a trainer with its output in a file, and print one line per training step, from the metrics that verl writes.

    python watch_run.py --log console.log --metrics metrics.jsonl -- bash maspo_grpo.sh ...

If the trainer fails, the end of its output is printed, and its exit status is ours.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from metrics_file import held_out_reward_names

POLL_SECONDS = 0.5
TAIL_LINES = 40


class NewRecords:
    """The records that a metrics file got since it was last asked; of a line that is not whole yet, nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def __call__(self) -> list[tuple[int, dict[str, float]]]:
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [(record["step"], record["data"]) for record in map(json.loads, whole.splitlines())]


def line_of(step: int, data: dict[str, float]) -> str:
    """What the console says of a step."""
    rewards = held_out_reward_names([(step, data)])
    parts = [("held-out" if len(rewards) == 1 else name, data[name], ".3f") for name in rewards]
    parts += [("reward", data.get("critic/score/mean"), ".3f"), ("loss", data.get("actor/loss"), ".4f")]
    said = [f"{name} {value:{digits}}" for name, value, digits in parts if value is not None]
    if data.get("timing_s/step") is not None:
        said.append(f"{data['timing_s/step']:.1f} s")
    return f"step {step:3}: " + ", ".join(said)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def watch(command: list[str], log: Path, metrics: Path) -> int:
    """Runs the command and returns its exit status."""
    new_records = NewRecords(metrics)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            has_ended = False
            while not has_ended:
                has_ended = process.poll() is not None  # asked before the last look at the file
                for step, data in new_records():
                    print(line_of(step, data), flush=True)
                if not has_ended:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # the command got it, too, and ends what it has started
            return process.wait()
    return process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, help="file for the command's output; overwritten")
    parser.add_argument("--metrics", type=Path, required=True, help="JSONL that verl's file logger writes")
    parser.add_argument("command", nargs="+", help="after --: what to run")
    args = parser.parse_args()
    args.metrics.unlink(missing_ok=True)  # of a run before this one
    status = watch(args.command, args.log, args.metrics)
    if status:
        print(f"{tail(args.log)}\n\ntraining failed with status {status}. These are its last lines; all: {args.log}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
