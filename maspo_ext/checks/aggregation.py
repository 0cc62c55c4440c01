"""The aggregation mode and the counts that it divides by."""

from __future__ import annotations

from typing import Any

from maspo_ext.checks.numbers import check_positive, whole_number
from maspo_ext.errors import did_you_mean, message

# The count that a mode divides by, besides those of this call's mask.
_COUNT_OF_MODE = {
    "token-mean": "batch_num_tokens",
    "token-sum": None,
    "seq-mean-token-sum": "global_batch_size",
    "seq-mean-token-mean": "global_batch_size",
    "seq-mean-token-sum-norm": "global_batch_size",
}
LOSS_AGG_MODES = tuple(_COUNT_OF_MODE)


def aggregation_keywords(loss_agg_mode: str, dp_size: int, loss_scale_factor: float | None) -> dict[str, Any]:
    """The aggregation mode and what it divides by in every batch, without what is None.

    Raises:
        TypeError, ValueError: the mode's name, or a number, is wrong.
    """
    _check_mode(loss_agg_mode)
    of_ranks = "It is the number of data-parallel ranks whose gradients are averaged."
    keywords = {"loss_agg_mode": loss_agg_mode, "dp_size": whole_number("dp_size", dp_size, 1, of_ranks)}
    if loss_scale_factor is not None:
        remedy = "It divides the sequence sums; None takes the padded width T."
        check_positive("loss_scale_factor", loss_scale_factor, remedy)
        keywords["loss_scale_factor"] = loss_scale_factor
    return keywords


def count_keywords(
    loss_agg_mode: str, dp_size: int, batch_num_tokens: int | None, global_batch_size: int | None
) -> dict[str, int]:
    """The counts that a mode divides by in this batch, without those that are None.

    Args:
        loss_agg_mode, dp_size: checked, as ``aggregation_keywords`` gives them.

    Raises:
        TypeError, ValueError: a count is wrong; or the one is missing that ranks or the other count call for.
    """
    of_count = "It is a count over all data-parallel ranks and micro-batches; None counts locally."
    counts = {}
    if batch_num_tokens is not None:
        counts["batch_num_tokens"] = whole_number("batch_num_tokens", batch_num_tokens, 0, of_count)
    if global_batch_size is not None:
        counts["global_batch_size"] = whole_number("global_batch_size", global_batch_size, 0, of_count)
    needed = _COUNT_OF_MODE[loss_agg_mode]
    if needed is not None and needed not in counts:
        _check_missing_count(needed, loss_agg_mode, dp_size, counts)
    return counts


def _check_mode(loss_agg_mode: str) -> None:
    if loss_agg_mode not in LOSS_AGG_MODES:
        remedy = did_you_mean(loss_agg_mode, LOSS_AGG_MODES, "Choose one of verl's five modes.")
        raise ValueError(message("loss_agg_mode", f"one of {', '.join(LOSS_AGG_MODES)}", repr(loss_agg_mode), remedy))


def _check_missing_count(needed: str, loss_agg_mode: str, dp_size: int, counts: dict[str, int]) -> None:
    """That there are neither other ranks nor the other count, since the count by which the mode divides is not given."""
    if dp_size > 1:
        expected = f"the count over all {dp_size} data-parallel ranks, since dp_size > 1 and loss_agg_mode is {loss_agg_mode!r}"
        remedy = "Sum the local counts over the ranks (all_reduce) and pass the result: the op runs no collective of its own."
        raise ValueError(message(needed, expected, None, remedy))
    for name in counts:
        expected = (
            f"the count of the global batch, since {name} is given and loss_agg_mode={loss_agg_mode!r} does not divide by that"
        )
        raise ValueError(message(needed, expected, None, f"Pass {needed}, or neither for a batch that is not split."))
