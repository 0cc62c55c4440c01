"""The policy loss as a function."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch

from maspo_ext.checks.aggregation import count_keywords
from maspo_ext.checks.rollout_is import parse_threshold
from maspo_ext.checks.tensors import FLOAT_DTYPES, check_tensor, check_tensors
from maspo_ext.config import config_for
from maspo_ext.derivatives import needs_dispatcher
from maspo_ext.errors import message
from maspo_ext.methods import BapoConfig, MethodConfig
from maspo_ext.ops import local_bapo_sums, loss_at_once
from maspo_ext.scalars import names_of, settings_of
from maspo_ext.stats import PolicyLossStats


class PolicyLossOutput(NamedTuple):
    """What a policy loss returns.

    Attributes:
        loss: scalar, differentiable in log_prob; float64 for float64 inputs, else float32.
        stats: named statistics, still on the device.
    """

    loss: torch.Tensor
    stats: PolicyLossStats


def policy_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor | None,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    ratio_mode: str = "maspo",
    config: MethodConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
    rollout_is_threshold: float | tuple[float, float] | str | None = None,
    loss_agg_mode: str | None = None,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
    dual_clip: bool = False,
    entropy: torch.Tensor | None = None,
    entropy_alpha: float = 0.0,
    entropy_kappa: float = 2.0,
    ref_log_prob: torch.Tensor | None = None,
    kl_type: str = "k3",
    kl_coef: float = 0.0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    all_reduce_sums: Callable[[torch.Tensor], Any] | None = None,
    **hyper: Any,
) -> PolicyLossOutput:
    """The fused per-token policy loss of a batch of responses, one pass over the data (for ``bapo`` two).

    Args:
        log_prob: ``[B, T]``, log-probabilities (nats) of the response tokens under the policy that is trained; float32,
            float64, bfloat16 or float16; arithmetic is in float32 (float64 for float64). Any strides. With ``cu_seqlens``,
            here and below, ``[total_tokens]``.
        old_log_prob: ``[B, T]``, the same under the policy that generated them; no gradient flows through it, nor through another
            tensor but log_prob. None where that is the policy that is trained (one update per batch): every ratio is 1.
        advantages: ``[B, T]``, ``[B, 1]`` or ``[B]``; with ``cu_seqlens`` ``[total_tokens]`` or ``[B, 1]``.
        response_mask: ``[B, T]``, bool, integer or float; a weight per token, not below 0: a sequence whose weights add up to less
            makes the loss NaN. Where it is 0 no input is used, NaN included.
        ratio_mode: the method: ``maspo``, ``ppo`` (or ``grpo``, the same), ``clip_higher``, ``dac``, ``entropy_adv``, ``bapo`` or
            ``sapo``.
        config: its hyper-parameters, an object of ``maspo_ext.RATIO_MODES[ratio_mode]``; or give them as keywords.
        rollout_is_weights: as ``advantages``; the importance ratio of the old policy to the rollout's, not its logarithm.
            Multiplies the token losses (statistics are without it).
        rollout_is_threshold: bounds of these weights. One number truncates them there (TIS); two, as ``(lower, upper)`` or as
            ``"lower_upper"`` (verl's form), set those outside to 0 (IcePop).
        loss_agg_mode: ``token-mean``, ``token-sum``, ``seq-mean-token-sum``, ``seq-mean-token-mean`` or
            ``seq-mean-token-sum-norm``, as in verl 0.9.1; None: that of the method's reference, ``seq-mean-token-mean`` for
            ``sapo`` and ``token-mean`` for the others.
        dp_size: number of data-parallel ranks over which the trainer averages gradients.
        batch_num_tokens: unmasked tokens of the global batch (all ranks and micro-batches), which ``token-mean`` divides by;
            None: of this call. A 0 is taken for an empty batch: with unmasked tokens in this call the loss is not finite.
        global_batch_size: sequences of the global batch, which the ``seq-mean`` modes divide by; None: those of this call with
            an unmasked token.
        loss_scale_factor: divisor of ``seq-mean-token-sum-norm``, without effect in the other modes; None: T (``max_seqlen``).
        dual_clip: for ``A < 0`` count the ratio as at most ``clip_ratio_c``, a field of every config, without gradient
            beyond. Only ``maspo`` and ``sapo`` do not do so anyway.
        entropy: ``[B, T]``, nats, of the whole vocabulary; shapes the advantages by ``A + min(entropy_alpha * entropy,
            |A| / entropy_kappa)`` before the method (Entropy Adv.), an entropy below 0 as 0; no gradient flows through it. Without
            effect while ``entropy_alpha`` is 0. ``ratio_mode="entropy_adv"`` needs it and has its own alpha and kappa.
        ref_log_prob: ``[B, T]``; adds ``kl_coef`` times an estimate of KL(policy || reference), without the rollout's weights.
        kl_type: ``k1`` (``kl``), ``abs``, ``k2`` (``mse``), ``k3`` (``low_var_kl``) as in verl, at most 10 and without gradient
            beyond, or ``k3_unbounded`` as in TRL, inf where ``exp(ref_log_prob - log_prob)`` is; with a trailing ``+`` that value
            with the gradient of k2, as in verl.
        cu_seqlens: int32 or int64 ``[B + 1]``, the running sum of the sequence lengths after a 0: the tensors are packed end to
            end. On a GPU its values are not looked at before the launch; a wrong one makes the loss NaN and leaves the gradient undefined.
        max_seqlen: the length of the longest of them; with ``cu_seqlens``.
        all_reduce_sums: for ``bapo``: called with the sums that its search decides by, to add them over data-parallel ranks in
            place, for example ``torch.distributed.all_reduce``, or as what it returns; a ``Work`` is waited for.
        **hyper: fields of the config class, if ``config`` is None; also by the reference implementations' names (``clip_low``,
            ``clip_high``, ``clip_c``).

    Returns:
        ``PolicyLossOutput(loss, stats)``. A batch without unmasked tokens has loss 0 and gradient 0.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, what was expected, what came and what to do.
        RuntimeError: a second derivative is asked for, or ``cu_seqlens`` on a CPU does not fit the tensors.

    Source: the config class of each mode; aggregation: ``agg_loss`` of verl 0.9.1.
    """
    lower = upper = None
    if rollout_is_threshold is not None:
        lower, upper = parse_threshold(rollout_is_threshold, rollout_is_weights is not None)
    has_tensors = (rollout_is_weights is not None, entropy is not None, ref_log_prob is not None)
    settings = None
    if needs_dispatcher():
        method = config_for(ratio_mode, config, hyper, "policy_loss")
    else:
        settings = settings_of(
            ratio_mode, config, has_tensors, lower, upper, loss_agg_mode, dp_size, loss_scale_factor, dual_clip, entropy_alpha,
            entropy_kappa, kl_type, kl_coef, **hyper,
        )  # fmt: skip
        method = settings.config
        counts = count_keywords(settings.checked["loss_agg_mode"], settings.checked["dp_size"], batch_num_tokens, global_batch_size)
    if old_log_prob is None:
        check_tensor("log_prob", log_prob, FLOAT_DTYPES, None)
        old_log_prob = log_prob.detach()
    tensors = (log_prob, old_log_prob, advantages, response_mask)
    bapo_sums = None
    if all_reduce_sums is not None:
        bapo_sums = _reduced_sums(
            method, tensors, all_reduce_sums, entropy=entropy, entropy_alpha=entropy_alpha, entropy_kappa=entropy_kappa,
            cu_seqlens=cu_seqlens, max_seqlen=max_seqlen,
        )  # fmt: skip
    elif isinstance(method, BapoConfig):
        _require_one_rank(dp_size)
    if settings is not None:
        loss, stats = loss_at_once(
            settings, counts, *tensors, rollout_is_weights, entropy, ref_log_prob, cu_seqlens, max_seqlen, bapo_sums
        )
        return PolicyLossOutput(loss, PolicyLossStats(stats, settings.stat_names))
    loss, stats = torch.ops.maspo.loss(
        *tensors, rollout_is_weights=rollout_is_weights, loss_agg_mode=loss_agg_mode, dp_size=dp_size,
        batch_num_tokens=batch_num_tokens, global_batch_size=global_batch_size, loss_scale_factor=loss_scale_factor,
        bapo_sums=bapo_sums, dual_clip=dual_clip, entropy=entropy, entropy_alpha=entropy_alpha, entropy_kappa=entropy_kappa,
        ref_log_prob=ref_log_prob, kl_type=kl_type, kl_coef=kl_coef, rollout_is_lower=lower, rollout_is_upper=upper,
        cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, **method.op_keywords(ratio_mode),
    )  # fmt: skip
    return PolicyLossOutput(loss, PolicyLossStats(stats, names_of(ratio_mode, has_tensors, upper is not None)))


def _require_one_rank(dp_size: Any) -> None:
    """Without a reduction BAPO's ranks would find bounds of their own."""
    if isinstance(dp_size, Real) and dp_size > 1:  # what is no number is refused with the other scalars
        expected = f"a function that adds the search's sums over all {dp_size} data-parallel ranks, since dp_size > 1"
        raise ValueError(message("all_reduce_sums", expected, None, "Pass torch.distributed.all_reduce, or one of a group."))


def _reduced_sums(method, tensors, all_reduce_sums, **shared) -> torch.Tensor:
    """BAPO's sums after the caller's reduction over ranks."""
    if not isinstance(method, BapoConfig):
        expected = f"None for {type(method).__name__}"
        raise ValueError(message("all_reduce_sums", expected, repr(all_reduce_sums), "Only bapo has sums: drop it."))
    if not callable(all_reduce_sums):
        remedy = "torch.distributed.all_reduce is one."
        raise TypeError(message("all_reduce_sums", "a function of one tensor", repr(all_reduce_sums), remedy))
    check_tensors(
        *tensors, entropy=shared["entropy"], cu_seqlens=shared["cu_seqlens"], max_seqlen=shared["max_seqlen"]
    )
    with torch.no_grad():
        sums = local_bapo_sums(method, *tensors, **shared)
        return _after(all_reduce_sums(sums), sums)


def _after(result: Any, sums: torch.Tensor) -> torch.Tensor:
    """``sums`` after a reduction in place, or those that it returned."""
    if isinstance(result, torch.Tensor):
        if (result.shape, result.dtype, result.device) == (sums.shape, sums.dtype, sums.device):
            return result
        of_result, of_sums = (f"{list(t.shape)}, {t.dtype}, {t.device}" for t in (result, sums))
        raise ValueError(message("all_reduce_sums", f"sums like those that it gets ({of_sums})", of_result, "Return their sum over the ranks, or None."))  # fmt: skip
    if hasattr(result, "wait"):
        result.wait()
    elif result is not None:
        raise TypeError(
            message("all_reduce_sums", "a function that adds in place, or returns a tensor or a Work of torch.distributed", f"{result!r} from it", "Let it return None.")
        )  # fmt: skip
    return sums
