"""``torch.ops.maspo.loss``: the checked, differentiable op on top of the compiled forward and backward.

Schemas and defaults: ``csrc/torch/schemas.cpp``. Importing this module registers the kernels below.
"""

from __future__ import annotations

import functools

import torch
from torch.library import Library, register_fake

from maspo_ext.checks.tensors import check_tensors
from maspo_ext.config import config_class_of
from maspo_ext.derivatives import (
    is_known_one,
    may_be_differentiated_otherwise,
    may_be_reused,
    refuse_gradient_of_old,
    refuse_other_derivatives,
    refuse_transforms,
    untransformed,
    without_second,
)
from maspo_ext.errors import message
from maspo_ext.methods import BapoConfig, MaspoConfig
from maspo_ext.scalars import keywords_with_counts
from maspo_ext.stats import NUM_STATS
from maspo_ext.torch_internals import keeps_graph

# Registrations live as long as this object.
_library = Library("maspo", "IMPL")
_TWIN = "maspo_ext.reference.loss"
_forward = torch.ops.maspo.loss_forward.default
_forward_packed = torch.ops.maspo.loss_forward_packed.default
_backward_out = torch.ops.maspo.loss_backward_out.default


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_prob, op, arguments, keywords):
        loss, stats, dlogp, scales = op(log_prob, *arguments, **keywords)
        if "cu_seqlens" in keywords:
            ctx.save_for_backward(keywords["cu_seqlens"])
        # Not saved: what saved-tensor hooks give back may be anybody's, and backward writes over it. log_prob is there for its
        # dtype and its place in the graph; nobody reads its numbers.
        ctx.kept = log_prob, dlogp, scales, keywords.get("max_seqlen")
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx, grad_loss, _grad_stats):
        if grad_loss is None:
            return None, None, None, None
        if ctx.kept is None:
            expected, remedy = "one backward pass", "Call it as loss.backward(retain_graph=True) but for the last time."
            raise RuntimeError(message("the graph of torch.ops.maspo.loss", expected, "a second one", remedy))
        log_prob, dlogp, scales, max_seqlen = ctx.kept
        if not keeps_graph():
            ctx.kept = None
        packed = () if max_seqlen is None else (*ctx.saved_tensors, max_seqlen)
        grad = _gradient(grad_loss, dlogp, scales, log_prob.dtype, *packed)
        return without_second(grad, log_prob, "loss", _TWIN), None, None, None


_apply_loss = untransformed(_Loss)


def _gradient(grad_loss, dlogp, scales, dtype, *packed):
    """``loss_backward``, in the memory of ``dlogp`` where that can be: then there is one tensor of the batch's size."""
    if dlogp.dtype != dtype or not may_be_reused(dlogp, grad_loss):
        return torch.ops.maspo.loss_backward(grad_loss, dlogp, scales, dtype, *packed)
    if not is_known_one(grad_loss):  # on a CPU, where dlogp has its scale already
        _backward_out(grad_loss, dlogp, scales, *packed, grad=dlogp)
    return dlogp


def prepared(
    config,
    ratio_mode,
    log_prob,
    old_log_prob,
    advantages,
    response_mask,
    *,
    rollout_is_weights=None,
    entropy=None,
    ref_log_prob=None,
    cu_seqlens=None,
    max_seqlen=None,
    bapo_sums=None,
    of="log_prob",
    search=True,
    **scalars,
):
    """The arguments of a call, checked, as ``(tensors, keywords)`` of ``forward_pass``; for ``bapo``, if asked, after its search.

    ``scalars``: those of ``keywords_with_counts``, which has their defaults.
    """
    check_tensors(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        rollout_is_weights,
        entropy,
        ref_log_prob,
        cu_seqlens,
        max_seqlen,
        of,
    )
    given = (rollout_is_weights is not None, entropy is not None, ref_log_prob is not None)
    checked = keywords_with_counts(config, ratio_mode, *given, **scalars)
    tensors = (old_log_prob, advantages, response_mask)
    keywords = tensor_keywords(rollout_is_weights, entropy, ref_log_prob, cu_seqlens, max_seqlen)
    if search and (bapo_sums is not None or isinstance(config, BapoConfig)):
        keywords["clip_bounds"] = clip_bounds(config, checked, log_prob, tensors, keywords, bapo_sums)
    return tensors, {**checked, **keywords}


def tensor_keywords(rollout_is_weights, entropy, ref_log_prob, cu_seqlens, max_seqlen):
    """Those of ``forward_pass``: what there is of the optional tensors."""
    keywords = {} if cu_seqlens is None else _packed(cu_seqlens, max_seqlen)
    for name, value in (("rollout_is_weights", rollout_is_weights), ("entropy", entropy), ("ref_log_prob", ref_log_prob)):
        if value is not None:
            keywords[name] = value
    return keywords


def forward_pass(log_prob, tensors, keywords, need_grad):
    """``(loss, stats, dlogp, scales)`` of what ``prepared`` gave; no part of autograd."""
    return _forward(log_prob, *tensors, **keywords, need_grad=need_grad)


def loss_by(op, log_prob, arguments, keywords):
    """``maspo::loss`` by ``loss_forward`` or ``loss_forward_packed``: ``(loss, stats)``, differentiable in log_prob.

    Args:
        arguments, keywords: of that op, the former without ``log_prob``.
    """
    need_grad = log_prob.requires_grad and torch.is_grad_enabled()
    if may_be_differentiated_otherwise():
        _refuse_other_derivatives(log_prob, arguments, keywords, need_grad)
    if need_grad:
        return _apply_loss(log_prob, op, arguments, keywords)
    refuse_gradient_of_old("log_prob does", arguments[0])
    with torch.no_grad():  # whatever the others require, there is no way back to them
        return op(log_prob, *arguments, **keywords, need_grad=False)[:2]


def loss_at_once(
    settings, counts, log_prob, old_log_prob, advantages, response_mask, rollout_is_weights, entropy, ref_log_prob, cu_seqlens,
    max_seqlen, bapo_sums,
):  # fmt: skip
    """``maspo::loss`` without the way through the dispatcher: ``(loss, stats)`` of tensors that are checked here.

    Args:
        settings: of ``settings_of``.
        counts: of ``count_keywords``.
    """
    optional = (rollout_is_weights, entropy, ref_log_prob, cu_seqlens, max_seqlen)
    check_tensors(log_prob, old_log_prob, advantages, response_mask, *optional)
    keywords = tensor_keywords(*optional)
    if type(settings.config) is BapoConfig:
        tensors = (old_log_prob, advantages, response_mask)
        keywords["clip_bounds"] = clip_bounds(settings.config, settings.checked, log_prob, tensors, keywords, bapo_sums)
    arguments = (old_log_prob, advantages, response_mask, settings.packed)
    return loss_by(_forward_packed, log_prob, arguments, keywords | counts)


def _refuse_other_derivatives(log_prob, arguments, keywords, need_grad):
    inputs = dict(zip(("log_prob", "old_log_prob", "advantages", "response_mask"), (log_prob, *arguments[:3]), strict=True))
    inputs |= {name: keywords.get(name) for name in ("rollout_is_weights", "entropy", "ref_log_prob")}
    refuse_other_derivatives(inputs, "loss", _TWIN)
    if need_grad:
        refuse_transforms("torch.ops.maspo.loss", _TWIN)


def _loss(log_prob, old_log_prob, advantages, response_mask, **keywords):
    """Kernel of ``maspo::loss`` on every device. The dispatcher drops the keywords at their default."""
    config, ratio_mode = take_config(keywords)
    call = prepared(config, ratio_mode, log_prob, old_log_prob, advantages, response_mask, **keywords)
    return loss_by(_forward, log_prob, *call)


_library.impl("loss", _loss, "CompositeImplicitAutograd")

_NAMED_DEFAULTS = {name: field.default for name, field in MaspoConfig.__dataclass_fields__.items()}


def take_config(keywords):
    """``(config, ratio_mode)`` that the op's keywords say; these are taken out of ``keywords``."""
    ratio_mode = keywords.pop("ratio_mode", "maspo")
    named = {name: keywords.pop(name, default) for name, default in _NAMED_DEFAULTS.items()}
    return _config(ratio_mode, named, keywords.pop("hyper", ())), ratio_mode


def _config(ratio_mode, named, hyper):
    """The checked config of a call: MASPO's from the named arguments, another mode's from ``hyper``."""
    config_class = config_class_of(ratio_mode)
    if config_class is MaspoConfig:
        if hyper:
            remedy = "Its hyper-parameters are the named arguments."
            raise ValueError(message("hyper", "nothing for ratio_mode='maspo'", list(hyper), remedy))
        hyper = named.values()
    elif changed := [name for name, value in named.items() if value != _NAMED_DEFAULTS[name]]:
        expected = f"the default for ratio_mode={ratio_mode!r}"
        remedy = f"These arguments are MASPO's: pass hyper=maspo_ext.{config_class.__name__}(...).hyper(), or call maspo_ext.policy_loss."
        raise ValueError(message(", ".join(changed), expected, repr(named[changed[0]]), remedy))
    return _checked(config_class, *hyper)


@functools.lru_cache(maxsize=256, typed=True)  # True is no number, though it equals 1
def _checked(config_class, *hyper):
    """The config of these values; a step's call repeats the one before, and the checks take longer than a small loss."""
    return config_class.from_hyper(hyper)


def _packed(cu_seqlens, max_seqlen):
    """As the kernels read them; an int of NumPy is none for the dispatcher."""
    whole = max_seqlen if isinstance(max_seqlen, torch.SymInt) else int(max_seqlen)
    return {"cu_seqlens": cu_seqlens.to(torch.int64).contiguous(), "max_seqlen": whole}


def local_bapo_sums(config, log_prob, *tensors, cu_seqlens=None, max_seqlen=None, **shared):
    """The sums of this call's tokens by which BAPO's search decides; float64, without gradient."""
    if cu_seqlens is not None:
        shared |= _packed(cu_seqlens, max_seqlen)
    return torch.ops.maspo.bapo_sums(log_prob.detach(), *tensors, **config.candidates, **shared)


def clip_bounds(config, checked, log_prob, tensors, keywords, bapo_sums):
    """What BAPO's search finds, on the device; every other method has none.

    Args:
        checked: of ``scalar_keywords``.
        keywords: of ``tensor_keywords``.
        bapo_sums: those of all ranks; None: of this call's tokens.
    """
    if not isinstance(config, BapoConfig):
        raise ValueError(message("bapo_sums", "None for a ratio_mode other than 'bapo'", "a tensor", "Drop it."))
    if bapo_sums is None:
        dp_size = checked["dp_size"]
        if dp_size > 1:
            expected = f"the sums over all {dp_size} data-parallel ranks, since dp_size > 1"
            remedy = "Add torch.ops.maspo.bapo_sums(...) over the ranks (all_reduce) and pass the result: the op runs no collective of its own."
            raise ValueError(message("bapo_sums", expected, None, remedy))
        of_entropy = (name for name in ("entropy_alpha", "entropy_kappa") if "entropy" in keywords)
        shared = {name: keywords[name] for name in ("entropy", "cu_seqlens", "max_seqlen") if name in keywords}
        bapo_sums = local_bapo_sums(config, log_prob, *tensors, **shared, **{name: checked[name] for name in of_entropy})
    return torch.ops.maspo.bapo_bounds(bapo_sums, **config.candidates, **config.search())


def _arithmetic_dtype(log_prob: torch.Tensor) -> torch.dtype:
    return torch.float64 if log_prob.dtype == torch.float64 else torch.float32


def _fake_forward(
    log_prob,
    old_log_prob,
    advantages,
    response_mask,
    *_settings,
    rollout_is_weights=None,
    entropy=None,
    ref_log_prob=None,
    cu_seqlens=None,
    max_seqlen=None,
    need_grad=True,
    **_keywords,
):
    check_tensors(
        log_prob,
        old_log_prob,
        advantages,
        response_mask,
        rollout_is_weights,
        entropy,
        ref_log_prob,
        cu_seqlens,
        max_seqlen,
    )
    rows = log_prob.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = _arithmetic_dtype(log_prob)
    return (
        log_prob.new_empty((), dtype=dtype),
        log_prob.new_empty((NUM_STATS,), dtype=torch.float64),
        log_prob.new_empty(log_prob.shape if need_grad else (0, *log_prob.shape[1:]), dtype=dtype),
        log_prob.new_empty((1 + rows,), dtype=torch.float64),
    )


register_fake("maspo::loss_forward", _fake_forward)
register_fake("maspo::loss_forward_packed", _fake_forward)


@register_fake("maspo::loss_backward")
def _(grad_loss, dlogp, scales, dtype, cu_seqlens=None, max_seqlen=None):
    return dlogp.new_empty(dlogp.shape, dtype=dtype)


@register_fake("maspo::bapo_sums")
def _(log_prob, old_log_prob, advantages, response_mask, *, lower, upper, **_keywords):
    return log_prob.new_empty((len(lower) + len(upper),), dtype=torch.float64)


@register_fake("maspo::bapo_bounds")
def _(sums, **_keywords):
    return sums.new_empty((3,))
