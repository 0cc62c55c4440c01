"""The bounds of the rollout's importance weights: one truncates them there (TIS), two set those outside to 0 (IcePop)."""

from __future__ import annotations

from maspo_ext.checks.numbers import check_at_least, check_non_negative, check_positive
from maspo_ext.errors import message


def check_rollout_bounds(lower: float | None, upper: float | None, has_weights: bool) -> None:
    """``rollout_is_lower`` and ``rollout_is_upper`` of the op, and that there are the ``rollout_is_weights`` that they bound.

    Raises:
        TypeError, ValueError: one of these is wrong.
    """
    for name, bound in (("rollout_is_lower", lower), ("rollout_is_upper", upper)):
        if bound is not None:
            check_non_negative(name, bound, "It bounds the importance weights of the rollout.")
            if not has_weights:
                raise _no_weights(f"{name} = {bound!r}")
    if lower is None:
        return
    remedy = "Weights outside both are masked (IcePop)."
    if upper is None:
        raise ValueError(message("rollout_is_upper", "a number, since rollout_is_lower is given", None, remedy))
    check_at_least("rollout_is_upper", upper, "rollout_is_lower", lower, remedy)


def parse_threshold(
    threshold: float | tuple[float, float] | str | None, has_weights: bool
) -> tuple[float | None, float | None]:
    """``(lower, upper)`` of ``rollout_is_threshold``, as a number, a pair, or verl's ``"lower_upper"``.

    Args:
        has_weights: whether the call has the ``rollout_is_weights`` that it bounds.

    Raises:
        TypeError, ValueError: it is none of these, or bounds nothing.
    """
    if threshold is None:
        return None, None
    what = "rollout_is_threshold"
    remedy = "One number truncates (TIS), two mask what lies outside (IcePop)."
    expected = 'a number, a pair (lower, upper), or "lower_upper"'
    parts = threshold
    if isinstance(threshold, str):
        try:
            parts = tuple(float(part) for part in threshold.split("_"))
        except ValueError:
            raise ValueError(message(what, expected, repr(threshold), remedy)) from None
    if not isinstance(parts, (tuple, list)):
        parts = (parts,)
    if len(parts) not in (1, 2):
        raise ValueError(message(what, expected, repr(threshold), remedy))
    for part in parts:
        check_positive(what, part, remedy)
    if len(parts) == 2:
        check_at_least(what, parts[1], "its lower bound", parts[0], remedy)
    if not has_weights:
        raise _no_weights(f"{what} = {threshold!r}")
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


def _no_weights(given: str) -> ValueError:
    return ValueError(message("rollout_is_weights", f"a tensor, since {given}", None, "Pass the weights that it bounds."))
