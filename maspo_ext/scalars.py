"""What a call of the loss says besides its tensors: checked, and as keywords of ``torch.ops.maspo.loss_forward``."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from maspo_ext.checks.aggregation import aggregation_keywords, count_keywords
from maspo_ext.checks.kl import check_kl, kernel_kl_type
from maspo_ext.checks.numbers import check_bool
from maspo_ext.checks.rollout_is import check_rollout_bounds
from maspo_ext.config import config_for
from maspo_ext.errors import message
from maspo_ext.methods import MethodConfig
from maspo_ext.methods.entropy_adv import check_entropy_adv
from maspo_ext.stats import stat_names

_ENTROPY_DEFAULTS = (0.0, 2.0)  # of entropy_alpha and entropy_kappa
_PASS_ENTROPY = "Pass the entropy of each token, [B, T]."
_Checked = TypeVar("_Checked")


def kept(function: Callable[..., _Checked]) -> Callable[..., _Checked]:
    """``function``, whose results nobody may change, by its arguments: the checks of a call take longer than a small loss, and a
    step's call repeats the one before.

    By their types, too: a True is no number of ranks, though it equals 1.
    """
    found = functools.lru_cache(maxsize=256, typed=True)(function)

    @functools.wraps(function)
    def kept_or_checked(*call: Any, **keywords: Any) -> _Checked:
        try:
            return found(*call, **keywords)
        except TypeError:
            # Nothing to look it up by, as a SymInt of torch.compile, or what the checks refuse: they say so themselves.
            pass
        return function(*call, **keywords)

    return kept_or_checked


@kept
def scalar_keywords(
    config: MethodConfig,
    ratio_mode: str,
    has_weights: bool,
    has_entropy: bool,
    has_ref: bool,
    *,
    loss_agg_mode: str | None = None,
    dp_size: int = 1,
    loss_scale_factor: float | None = None,
    dual_clip: bool = False,
    entropy_alpha: float = _ENTROPY_DEFAULTS[0],
    entropy_kappa: float = _ENTROPY_DEFAULTS[1],
    kl_type: str = "k3",
    kl_coef: float = 0.0,
    rollout_is_lower: float | None = None,
    rollout_is_upper: float | None = None,
) -> dict[str, Any]:
    """The keywords, but for the counts, which are others in every batch.

    What has its default in ``loss_forward`` is left out: the dispatcher takes a third of a microsecond for each argument.

    Args:
        has_weights, has_entropy, has_ref: whether the call has ``rollout_is_weights``, ``entropy`` and ``ref_log_prob``.
        loss_agg_mode, ...: those of ``torch.ops.maspo.loss``.

    Raises:
        TypeError, ValueError: a scalar is wrong, or belongs to a tensor that is not there.
    """
    if loss_agg_mode is None:
        loss_agg_mode = config.default_loss_agg_mode
    aggregation = aggregation_keywords(loss_agg_mode, dp_size, loss_scale_factor)
    check_bool("dual_clip", dual_clip, "It bounds the ratio of tokens with a negative advantage.")
    check_kl(kl_type, kl_coef, has_ref)
    check_rollout_bounds(rollout_is_lower, rollout_is_upper, has_weights)
    entropy_alpha, entropy_kappa = _entropy_adv(config, ratio_mode, has_entropy, entropy_alpha, entropy_kappa)
    keywords = {
        "method": config.method,
        "hyper": config.kernel_hyper(),
        "clip_ratio_c": config.clip_ratio_c if dual_clip or config.reports_dual_clip else math.inf,
        "dual_clip": dual_clip or config.dual_clip,
        **aggregation,
    }
    if has_entropy:
        keywords |= {"entropy_alpha": entropy_alpha, "entropy_kappa": entropy_kappa}
    if has_ref:
        keywords |= {"kl_type": kernel_kl_type(kl_type), "kl_coef": kl_coef}
    for name, bound in (("rollout_is_lower", rollout_is_lower), ("rollout_is_upper", rollout_is_upper)):
        if bound is not None:
            keywords[name] = bound
    return keywords


def keywords_with_counts(
    config: MethodConfig,
    ratio_mode: str,
    *has_tensors: bool,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    **scalars: Any,
) -> dict[str, Any]:
    """``scalar_keywords`` and the counts, which are checked at every call.

    Raises:
        TypeError, ValueError: as of ``scalar_keywords`` and ``count_keywords``.
    """
    checked = scalar_keywords(config, ratio_mode, *has_tensors, **scalars)
    counts = count_keywords(checked["loss_agg_mode"], checked["dp_size"], batch_num_tokens, global_batch_size)
    return {**checked, **counts}


class Settings(NamedTuple):
    """What a call of ``policy_loss`` says besides its tensors and counts.

    Attributes:
        config: the method's.
        checked: of ``scalar_keywords``.
        packed: ``settings`` of ``torch.ops.maspo.loss_forward_packed``.
        stat_names: what its statistics are.
    """

    config: MethodConfig
    checked: dict[str, Any]
    packed: list[float]
    stat_names: tuple[str | None, ...]


@kept
def settings_of(
    ratio_mode: str,
    config: MethodConfig | None,
    has_tensors: tuple[bool, bool, bool],
    rollout_is_lower: float | None,
    rollout_is_upper: float | None,
    /,
    *values: Any,
    **hyper: Any,
) -> Settings:
    """The checked settings of such a call, by few and positional arguments: they are looked up at every call.

    Args:
        has_tensors: as of ``scalar_keywords``.
        *values: of ``_VALUES``.
        ratio_mode, ...: of ``policy_loss``.

    Raises:
        TypeError, ValueError: as of ``config_for`` and ``scalar_keywords``.
    """
    config = config_for(ratio_mode, config, hyper, "policy_loss")
    bounds = {"rollout_is_lower": rollout_is_lower, "rollout_is_upper": rollout_is_upper}
    checked = scalar_keywords(config, ratio_mode, *has_tensors, **bounds, **dict(zip(_VALUES, values, strict=True)))
    packed = torch.ops.maspo.loss_settings(**checked)
    return Settings(config, checked, packed, names_of(ratio_mode, has_tensors, rollout_is_upper is not None))


# Those that a call of policy_loss says as they are, in their order.
_VALUES = tuple(
    name
    for name, parameter in inspect.signature(scalar_keywords).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and not name.startswith("rollout_is")
)


def names_of(ratio_mode: str, has_tensors: tuple[bool, bool, bool], bounded: bool) -> tuple[str | None, ...]:
    """Of the statistics of a call with such tensors, and with or without a bound of the rollout's weights."""
    _, has_entropy, has_ref = has_tensors
    return stat_names(ratio_mode, entropy_adv=has_entropy, ref_kl=has_ref, rollout_is=bounded)


def _entropy_adv(
    config: MethodConfig, ratio_mode: str, has_entropy: bool, entropy_alpha: float, entropy_kappa: float
) -> tuple[float, float]:
    """``(alpha, kappa)`` of the entropy's part in the advantages: the method's own, or those of the call."""
    of_method = config.entropy_adv()
    if of_method is not None:
        if not has_entropy:
            raise ValueError(message("entropy", f"a tensor for ratio_mode={ratio_mode!r}", None, _PASS_ENTROPY))
        if (entropy_alpha, entropy_kappa) != _ENTROPY_DEFAULTS:
            expected, got = f"the defaults for ratio_mode={ratio_mode!r}", f"{entropy_alpha!r}, {entropy_kappa!r}"
            remedy = "Its own alpha and kappa are hyper-parameters of the mode."
            raise ValueError(message("entropy_alpha, entropy_kappa", expected, got, remedy))
        return of_method
    if (entropy_alpha, entropy_kappa) == _ENTROPY_DEFAULTS:
        return _ENTROPY_DEFAULTS
    check_entropy_adv(entropy_alpha, entropy_kappa, "entropy_")
    if entropy_alpha != 0 and not has_entropy:
        raise ValueError(message("entropy", f"a tensor, since entropy_alpha = {entropy_alpha!r}", None, _PASS_ENTROPY))
    return entropy_alpha, entropy_kappa
