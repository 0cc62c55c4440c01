"""Reads the JSONL that verl's ``file`` logger writes: one ``{"step": ..., "data": {name: value}}`` per line."""

import json
from pathlib import Path

HELD_OUT_PREFIX = "val-core/"


def read_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """All ``(step, metrics)`` of a run, in order."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no metrics file; expected the JSONL of verl's file logger. "
            "Run with trainer.logger='[console,file]' and VERL_FILE_LOGGER_PATH set to this path."
        )
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not records:
        raise ValueError(f"{path}: empty; the run ended before its first step. Its console output says why.")
    return [(record["step"], record["data"]) for record in records]


def series(metrics: list[tuple[int, dict[str, float]]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, without the steps that do not have it."""
    points = [(step, data[name]) for step, data in metrics if data.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def held_out_reward_names(metrics: list[tuple[int, dict[str, float]]]) -> list[str]:
    """The names of verl's validation rewards, one per data source: ``val-core/<source>/<reward or acc>/mean@<n>``."""
    names = {name for _, data in metrics for name in data if name.startswith(HELD_OUT_PREFIX) and "/mean@" in name}
    return sorted(names)
