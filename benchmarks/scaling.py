"""Our time against the number of tokens and of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from cases import Case, make_batch

import maspo_ext

COLS = 1024
LARGEST = 26  # log2 of the tokens
RUNS = 5


def scaling(device: str, clocks: dict[str, Callable], step) -> Iterator[tuple[int, Case, dict[str, float]]]:
    """(threads, case, seconds by clock) of MASPO's forward and backward; the best of the runs."""
    most = torch.get_num_threads()
    try:
        for threads in sorted({1, most}) if device == "cpu" else [most]:
            torch.set_num_threads(threads)
            for power in range(10, LARGEST + 1, 2):
                case = Case(2**power // COLS, COLS)
                step(f"2^{power} tokens, {threads} threads")
                batch = make_batch(case, device)
                del batch["entropy"]

                def both(batch=batch):
                    torch.autograd.grad(maspo_ext.policy_loss(**batch).loss, batch["log_prob"])

                both()
                yield threads, case, {name: min(clock(both) for _ in range(RUNS)) for name, clock in clocks.items()}
    finally:
        torch.set_num_threads(most)
