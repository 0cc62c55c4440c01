"""The KL term against a reference policy."""

from __future__ import annotations

from maspo_ext.checks.numbers import check_non_negative
from maspo_ext.errors import message

# verl's names of the KL estimates, two for some, that of k3 without verl's bounds, and the kernels' name of each.
KL_TYPES = {
    "k1": "k1",
    "kl": "k1",
    "abs": "abs",
    "k2": "k2",
    "mse": "k2",
    "k3": "k3",
    "low_var_kl": "k3",
    "k3_unbounded": "k3_unbounded",
}


def check_kl(kl_type: str, kl_coef: float, has_ref: bool) -> None:
    """The estimate's name, its weight, and that there is the reference's ``ref_log_prob`` for it.

    Raises:
        TypeError, ValueError: one of these is wrong.
    """
    if not isinstance(kl_type, str) or kl_type.removesuffix("+") not in KL_TYPES:
        expected = f"one of {', '.join(KL_TYPES)}, or one of them with a trailing + (straight-through)"
        raise ValueError(message("kl_type", expected, repr(kl_type), "Choose one of these."))
    check_non_negative("kl_coef", kl_coef, "It weighs the KL term; verl's default is 0.001.")
    if kl_coef != 0 and not has_ref:
        remedy = "Pass the reference's log-probabilities, or kl_coef=0."
        raise ValueError(message("ref_log_prob", f"a tensor, since kl_coef = {kl_coef!r}", None, remedy))


def kernel_kl_type(kl_type: str) -> str:
    """The kernels' name of an estimate; the trailing ``+`` stays."""
    return KL_TYPES[kl_type.removesuffix("+")] + "+" * kl_type.endswith("+")
