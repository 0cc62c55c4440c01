"""Checks of numbers and flags: hyper-parameters, counts, coefficients."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch

from maspo_ext.errors import message
from maspo_ext.torch_internals import guard_or_true

_LARGEST = sys.float_info.max
_SYMBOLIC = (torch.SymInt, torch.SymFloat)  # of torch.compile


def _is_number(value: Any) -> bool:
    """Whether it is a real number: Python's, NumPy's or a symbol for one, and no bool."""
    return isinstance(value, (Real, *_SYMBOLIC)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """As a float, too, which is what the kernels take: a long int may be more than any.

    By comparisons, since torch.compile cannot ask ``math.isfinite`` of a symbol.
    """
    if isinstance(value, int):
        return -_LARGEST <= value <= _LARGEST
    return value == value and value != math.inf and value != -math.inf


def python_number(value: Any) -> Any:
    """A number of NumPy as Python's, since torch.compile takes NumPy's for an array; anything else as it is."""
    return value.item() if isinstance(value, Real) and type(value).__module__ == "numpy" else value


def _shown(value: Any) -> str:
    """A number as an error shows it."""
    too_long = isinstance(value, int) and value.bit_length() > 128
    return f"an int of {value.bit_length()} bits" if too_long else repr(value)


def check_number(
    name: str,
    value: Any,
    expected: str,
    test: Callable[[Any], bool],
    remedy: str,
    *,
    infinite: bool = False,
    kind: str = "a number, ",
) -> None:
    """That ``value`` is a number for which ``test`` holds, finite unless ``infinite`` allows inf.

    Args:
        name: of the argument, as the user knows it.
        expected: ``test`` in words, as ``"> 0"``.
        remedy: what to do, a sentence.
        kind: goes before ``expected`` where it is no number at all.

    Raises:
        TypeError: it is no real number.
        ValueError: it is one that fails the test, is NaN or, unless allowed, inf.
    """
    if not _is_number(value):
        if isinstance(value, torch.Tensor):
            remedy = f"Pass a Python number: {name}.item(). {remedy}"
        raise TypeError(message(name, f"{kind}{expected}", f"{value!r} ({type(value).__name__})", remedy))
    if not isinstance(value, _SYMBOLIC) and not _is_finite(value) and not (infinite and value == math.inf):
        expected += " and finite" if not infinite else " (inf for no bound)"
    elif test(value):
        return
    raise ValueError(message(name, expected, _shown(value), remedy))


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value > 0``."""
    check_number(name, value, "> 0", lambda v: v > 0, remedy)


def check_non_negative(name: str, value: Any, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value >= 0``."""
    check_number(name, value, ">= 0", lambda v: v >= 0, remedy)


def check_above(name: str, value: Any, bound: float, remedy: str, *, infinite: bool = False) -> None:
    """Raise as :func:`check_number` unless ``value > bound``."""
    check_number(name, value, f"> {bound!r}", lambda v: v > bound, remedy, infinite=infinite)


def _bound(name: str, bound: float) -> str:
    return f"{name} = {bound!r}" if name else repr(bound)


def check_at_least(
    name: str, value: Any, bound_name: str, bound: float, remedy: str, *, infinite: bool = False
) -> None:
    """Raise as :func:`check_number` unless ``value >= bound``, which is called ``bound_name`` unless that is empty."""
    check_number(name, value, f">= {_bound(bound_name, bound)}", lambda v: v >= bound, remedy, infinite=infinite)


def check_at_most(name: str, value: Any, bound_name: str, bound: float, remedy: str) -> None:
    """Raise as :func:`check_number` unless ``value <= bound``, which is called ``bound_name`` unless that is empty."""
    check_number(name, value, f"<= {_bound(bound_name, bound)}", lambda v: v <= bound, remedy)


# Counts become float64, which holds every whole number up to here.
LARGEST_COUNT = 2**53


def whole_number(name: str, value: Any, least: int, remedy: str) -> int:
    """A count as an int, from what may be a float, as of ``mask.sum().item()`` for a float mask.

    Raises:
        TypeError: it is no number.
        ValueError: it is not whole, below ``least``, or so large that it counts nothing.
    """
    if type(value) is int and least <= value <= LARGEST_COUNT:
        return value  # at once: a step has another count each time
    expected = f"a whole number >= {least}"
    if isinstance(value, torch.SymInt):
        # The other way to ask cannot be traced where a number is not known before the run, as .item() in a compiled function.
        check_number(name, value, expected, lambda v: guard_or_true(v >= least), remedy, kind="")
        return value
    check_number(name, value, expected, lambda v: v >= least and v == int(v), remedy, kind="")
    if value > LARGEST_COUNT:
        raise ValueError(message(name, f"{expected} and <= 2**53", _shown(value), remedy))
    return int(value)


def check_bool(name: str, value: Any, remedy: str) -> None:
    """Raise TypeError if ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(message(name, "True or False", repr(value), remedy))
