"""``linear_loss`` is ``policy_loss`` of ``linear_logprob``: the same bits of the results, and the gradients of both."""

import pytest
import torch

import maspo_ext
from maspo_ext.logits.groups import Group
from maspo_ext.logits.loss_of_tokens import row_of_token

from ..op.cases import AGG_MODES, DEFAULT_METHODS, FLOAT_DTYPES, OPTIONS, WRONG_CU_SEQLENS, every_mode, random_batch
from .cases import (
    HEAD,
    assert_close,
    assert_same_bits,
    common_stats,
    composition,
    converted,
    every_mode_of_the_op,
    leaves,
    loss_batch,
    noise_of_many_tokens,
    reference,
    run_loss,
    tolerance,
)

linear_loss = maspo_ext.linear_loss
WORDS = 301
# Bytes: a token at a time; a few; all at once.
BUDGETS = [1, 4 * WORDS * 7, None]
every_budget = pytest.mark.parametrize("memory_budget", BUDGETS)
FRONT_OPTIONS = {name: value for name, value in OPTIONS.items() if "rollout" not in name}
FRONT_OPTIONS["rollout_is_threshold"] = (0.7, 1.2)


def batch_of(method, dtype=torch.float32, device="cpu", rows=4, cols=6, bias=True, **options):
    return loss_batch(method.full_batch(rows, cols, dtype=dtype, device=device, **options), dtype=dtype, bias=bias)


def of_mode(method, **options):
    return {"ratio_mode": method.mode, "config": method.config, **method.takes(options)}


def is_shaped(method, keywords):
    return method.mode == "entropy_adv" or keywords.get("entropy_alpha", 0) != 0


def assert_is_the_composition(arguments, method, memory_budget=None, asked=HEAD, **options):
    """Results to the bit; gradients but for the order of additions, and for a rounding of a half."""
    keywords = {**of_mode(method, **options), "memory_budget": memory_budget}
    actual = run_loss(linear_loss, arguments, asked, **keywords)
    expected = run_loss(composition, arguments, asked, **keywords, entropy_needed=is_shaped(method, keywords))
    assert actual[0].isfinite() and all(grad.any() and grad.isfinite().all() for grad in actual[4:])
    assert_same_bits(actual[:4], expected[:4])
    assert [grad.dtype for grad in actual[4:]] == [grad.dtype for grad in expected[4:]]
    assert_close(actual[4:], expected[4:], tolerance(arguments["hidden"].dtype, arguments["hidden"].device.type))
    return actual


@every_budget
@pytest.mark.parametrize("options", [{}, FRONT_OPTIONS], ids=["without options", "with options"])
@every_mode
def test_composition(method, options, memory_budget, device):
    for dtype in FLOAT_DTYPES:
        arguments = batch_of(method, dtype, device)
        if not options:
            arguments = {
                name: value for name, value in arguments.items() if name not in ("ref_log_prob", "rollout_is_weights")
            }
        assert_is_the_composition(arguments, method, memory_budget, temperature=0.7, **options)


@pytest.mark.parametrize("counts", ["local", "global"])
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@every_mode
def test_aggregations(method, loss_agg_mode, counts, device):
    counts = {**method.global_counts, "loss_scale_factor": 7.0} if counts == "global" else {}
    arguments = batch_of(method, device=device)
    assert_is_the_composition(arguments, method, 4 * WORDS * 5, loss_agg_mode=loss_agg_mode, **FRONT_OPTIONS, **counts)


@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["without options", "with options"])
@every_mode_of_the_op
def test_twin(method, options, loss_agg_mode, device):
    arguments = batch_of(method, torch.float64, device)
    keywords = {**method.keywords, **method.takes(options), "loss_agg_mode": loss_agg_mode, "temperature": 1.3}
    actual = run_loss(torch.ops.maspo.linear_loss, arguments, memory_budget=8 * WORDS * 5, **keywords)
    expected = run_loss(reference.linear_loss, arguments, **keywords)
    assert_close(actual, expected, 1e-11)


@pytest.mark.parametrize("per_row", ["[B, 1]", "[B]"])
@every_mode
def test_advantages_and_weights_once_per_sequence(method, per_row, device):
    arguments = batch_of(method, device=device)
    full = dict(arguments)
    for name in ("advantages", "rollout_is_weights"):
        column = arguments[name][:, 1:2]
        full[name] = column.expand(-1, 6).contiguous()
        arguments[name] = column if per_row == "[B, 1]" else column.squeeze(1)
    keywords = of_mode(method, **FRONT_OPTIONS)
    assert_same_bits(run_loss(linear_loss, arguments, **keywords), run_loss(linear_loss, full, **keywords))
    assert_is_the_composition(arguments, method, 1, **FRONT_OPTIONS)


def packed(arguments, lengths, width):
    """The first ``lengths`` tokens of each row, end to end, and the padded batch with the rest masked."""
    keep = torch.arange(width) < torch.tensor(lengths)[:, None]
    keep = keep.to(arguments["hidden"].device)
    padded = {**arguments, "response_mask": arguments["response_mask"] & keep}
    of_tokens = {name: value if name in ("weight", "bias") else value[keep] for name, value in padded.items()}
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], device=keep.device)
    return padded, {**of_tokens, "cu_seqlens": cu_seqlens, "max_seqlen": width}, keep


@every_budget
@pytest.mark.parametrize("loss_agg_mode", AGG_MODES)
@every_mode
def test_packed(method, loss_agg_mode, memory_budget, device):
    padded, of_tokens, keep = packed(batch_of(method, device=device), [6, 1, 3, 5], 6)
    options = {**FRONT_OPTIONS, "loss_agg_mode": loss_agg_mode}
    actual = assert_is_the_composition(of_tokens, method, memory_budget, **options)
    keywords = {**of_mode(method, **options), "memory_budget": memory_budget}
    loss, stats, log_prob, entropy, hidden, *of_head = run_loss(linear_loss, padded, **keywords)
    assert_close(actual, (loss, stats, log_prob[keep], entropy[keep], hidden[keep], *of_head), 1e-5)


def test_the_row_of_a_packed_token_is_one_that_there_is():
    """A GPU, where nobody looks at cu_seqlens before, must not be led beyond the rows: that would end its context."""
    target = torch.zeros(400, dtype=torch.int64)
    sound = torch.tensor([0, 0, 100, 100, 250, 400, 400])
    rows = torch.arange(6).repeat_interleave(sound.diff())
    assert torch.equal(row_of_token(sound, target), rows)
    for wrong in WRONG_CU_SEQLENS:
        rows = row_of_token(torch.tensor(wrong), target)
        assert rows.shape == (400,) and rows.min() >= 0 and rows.max() <= 2, wrong


@every_mode
def test_packed_with_advantages_once_per_sequence(method, device):
    _, of_tokens, _ = packed(batch_of(method, device=device), [6, 1, 3, 5], 6)
    lengths = of_tokens["cu_seqlens"].diff()
    full = dict(of_tokens)
    for name in ("advantages", "rollout_is_weights"):
        of_tokens[name] = of_tokens[name][of_tokens["cu_seqlens"][:-1]][:, None]
        full[name] = of_tokens[name].squeeze(1).repeat_interleave(lengths)
    keywords = of_mode(method, **FRONT_OPTIONS)
    assert_same_bits(run_loss(linear_loss, of_tokens, **keywords), run_loss(linear_loss, full, **keywords))


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float32], ids=str)
def test_masks_are_weights(mask_dtype, device):
    method = DEFAULT_METHODS["ppo"]
    arguments = batch_of(method, device=device)
    arguments["response_mask"] = arguments["response_mask"].to(mask_dtype)
    if mask_dtype.is_floating_point:
        arguments["response_mask"] *= torch.linspace(0.25, 2, 24, device=device).view(4, 6)
    for loss_agg_mode in AGG_MODES:
        assert_is_the_composition(arguments, method, 1, loss_agg_mode=loss_agg_mode)


@every_budget
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_mode
def test_ratio_is_exactly_one_on_policy(method, dtype, memory_budget, device):
    arguments = batch_of(method, dtype, device)
    head = {name: arguments[name] for name in ("hidden", "weight", "bias", "target")}
    old = maspo_ext.linear_logprob(**head, temperature=0.7, memory_budget=memory_budget).log_prob
    output = linear_loss(
        **{**arguments, "old_log_prob": old}, temperature=0.7, memory_budget=memory_budget, **of_mode(method)
    )
    stats = output.stats.to_dict()
    assert stats["actor/ratio_min"] == stats["actor/ratio_max"] == 1 and stats["actor/ppo_kl"] == 0
    mask = arguments["response_mask"]
    assert_same_bits([output.log_prob[mask]], [old[mask]])
    assert not output.log_prob[~mask].any() and not output.entropy[~mask].any()


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@every_mode
def test_upstream_gradient(method, dtype, device):
    arguments = batch_of(method, dtype, device)
    one = run_loss(linear_loss, arguments, **of_mode(method))[4:]
    eight = run_loss(linear_loss, arguments, upstream=8.0, **of_mode(method))[4:]
    if dtype == torch.float16:  # whose small numbers have fewer bits
        assert_close(eight, [8 * grad.double() for grad in one], tolerance(dtype, device))
    else:
        assert_same_bits(eight, [8 * grad for grad in one])
    third = run_loss(linear_loss, arguments, upstream=1 / 3, **of_mode(method))[4:]
    assert_close([3 * grad.double() for grad in third], one, 2 * tolerance(dtype, device))

    def function(**keywords):
        loss, *others = linear_loss(**keywords)
        return (loss / 3 + 2 * loss, *others)

    both = run_loss(function, arguments, **of_mode(method))[4:]
    assert_close(both, [grad.double() * (7 / 3) for grad in one], 2 * tolerance(dtype, device))


@pytest.mark.parametrize("asked", [(name,) for name in HEAD] + [("hidden", "weight")], ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_partial_gradients(dtype, asked, device):
    """Results to the bit; gradients, too, where the logits lie in the same place."""
    arguments = batch_of(DEFAULT_METHODS["maspo"], dtype, device)
    whole = run_loss(linear_loss, arguments, memory_budget=4 * WORDS * 7)
    grads = dict(zip(HEAD, whole[4:], strict=True))
    actual = run_loss(linear_loss, arguments, asked, memory_budget=4 * WORDS * 7)
    assert_same_bits(actual[:4], whole[:4])
    expected = [grads[name] for name in asked]
    if "weight" in asked:
        assert_same_bits(actual[4:], expected)
    else:
        assert_close(actual[4:], expected, tolerance(dtype, device))


# Of 40 tokens in tiles of 8: all within the weight's gradient, some of them, none.
WIDTHS = {48: [40], 30: [24, 8, 8], 7: [8] * 5}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_where_logits_lie(dtype, width, monkeypatch):
    """In the weight's gradient or beside it, a group's results have the bits of ``linear_logprob``; with gradients and without.

    On a CPU; ``test_gpu_way.py`` has a GPU's.
    """
    tokens, words, seen = 40, 2400, []
    policy = random_batch(5, 8, torch.float32)
    policy["response_mask"][0] = True  # where a block's logits begin
    arguments = loss_batch(policy, width, words, dtype)
    keywords = {"memory_budget": (8 if dtype == torch.float64 else 4) * words * 8}
    gradients = Group.gradients

    def noted(group, *args, **kwargs):
        seen.append((group.tokens.stop - group.tokens.start, group.in_gradient, len(group.blocks)))
        return gradients(group, *args, **kwargs)

    monkeypatch.setattr(Group, "gradients", noted)
    with_all = run_loss(linear_loss, arguments, **keywords)
    lengths, inside, blocks = zip(*seen, strict=True)
    assert list(lengths) == WIDTHS[width] and sum(lengths) == tokens and (min(blocks) > 1 or width == 7)
    assert list(inside) == [width > 7] + [False] * (len(seen) - 1)
    seen.clear()
    of_hidden = run_loss(linear_loss, arguments, ["hidden"], **keywords)
    assert seen == [(8, False, blocks[0])] * 5
    with torch.no_grad():
        loss, stats, *of_tokens = linear_loss(**arguments, **keywords)
    assert_same_bits(of_hidden[:4], with_all[:4])
    assert_same_bits((loss, common_stats(stats), *of_tokens), with_all[:4])
    head = {name: arguments[name] for name in (*HEAD, "target")}
    mask = arguments["response_mask"]
    of_logprob = maspo_ext.linear_logprob(**head, **keywords)
    assert_same_bits([value[mask] for value in of_logprob], [value[mask] for value in with_all[2:4]])
    assert_close(of_hidden[4:], with_all[4:5], tolerance(dtype, "cpu"))
    expected = run_loss(reference.linear_loss, converted(arguments, torch.float64))
    assert_close(with_all[4:], expected[4:], tolerance(dtype, "cpu"))


def test_results_without_gradient(device):
    output = linear_loss(**leaves(batch_of(DEFAULT_METHODS["maspo"], device=device)))
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in (output.stats.tensor, output.log_prob, output.entropy))


def test_a_second_backward_raises(device):
    arguments = leaves(batch_of(DEFAULT_METHODS["maspo"], device=device))
    loss = linear_loss(**arguments).loss
    loss.backward(retain_graph=True)
    first = arguments["weight"].grad.clone()
    with pytest.raises(
        RuntimeError, match="linear_loss: expected one backward pass, got a second.*linear_logprob and policy_loss"
    ):
        loss.backward()
    linear_loss(**arguments).loss.backward()
    assert_same_bits([arguments["weight"].grad], [2 * first])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_of_many_tokens_are_rounded_once(dtype, device):
    policy = random_batch(64, 256, dtype=torch.float32, device=device, weights=False)
    arguments = loss_batch(policy, 4, 50, dtype)
    keywords = {"ratio_mode": "ppo", "memory_budget": 4 * 50 * 1000, "loss_agg_mode": "token-mean"}
    ours = run_loss(linear_loss, arguments, upstream=2.0**10, **keywords)
    exact = run_loss(composition, converted(arguments, torch.float64), upstream=2.0**10, **keywords)
    half = torch.finfo(dtype)
    for name, a, e in zip(HEAD, ours[4:], exact[4:], strict=True):
        others = noise_of_many_tokens(dtype, device, 1e-4) * e.abs().max()
        assert ((a.double() - e).abs() <= half.eps / 2 * e.abs() + others).all(), name


@pytest.mark.parametrize("search", ["local", "all_reduce_sums"])
def test_bapo_is_the_composition(search, device):
    method = DEFAULT_METHODS["bapo"]
    seen = []
    options = {} if search == "local" else {"all_reduce_sums": lambda sums: seen.append(sums.mul_(2))}
    assert_is_the_composition(batch_of(method, device=device), method, 4 * WORDS * 7, **options)
    assert len(seen) == (0 if search == "local" else 2)


def test_empty_batches(device):
    for rows, cols in ((0, 5), (3, 0)):
        arguments = loss_batch(random_batch(rows, cols, torch.float32, device), 8, 30)
        loss, stats, log_prob, entropy, *grads = run_loss(linear_loss, arguments)
        assert loss == 0 and log_prob.shape == entropy.shape == (rows, cols) and not stats.any()
        assert grads[0].shape == (rows, cols, 8) and not any(grad.any() for grad in grads)


@every_budget
@pytest.mark.parametrize("options", [{}, FRONT_OPTIONS], ids=["without options", "with options"])
@every_mode
def test_without_old_log_prob_the_policy_is_its_own(method, options, memory_budget, device):
    """As with the log-probabilities of the same op: the same bits, and every ratio 1."""
    for dtype in FLOAT_DTYPES:
        arguments = batch_of(method, dtype, device)
        head = {name: arguments[name] for name in (*HEAD, "target")}
        target = torch.where(arguments["response_mask"] != 0, head.pop("target"), -100)
        keywords = of_mode(method, **options) | {"memory_budget": memory_budget}
        with torch.no_grad():
            own, _ = maspo_ext.linear_logprob(**head, target=target, memory_budget=memory_budget)
        actual = run_loss(linear_loss, {**arguments, "old_log_prob": None}, **keywords)
        expected = run_loss(linear_loss, {**arguments, "old_log_prob": own}, **keywords)
        assert_same_bits(actual, expected)
        names = maspo_ext.stat_names(method.mode)
        stats = dict(zip(names, actual[1].tolist(), strict=True))
        assert stats["actor/ratio_min"] == stats["actor/ratio_max"] == 1.0 and stats["actor/ppo_kl"] == 0.0


def test_without_old_log_prob_packed_and_as_a_module(device):
    method = DEFAULT_METHODS["maspo"]
    padded, of_tokens, _ = packed(batch_of(method, device=device), [6, 2, 0, 5], 6)
    module = maspo_ext.LinearPolicyLoss(kl_coef=0.1)
    results = [run_loss(module, {**arguments, "old_log_prob": None}) for arguments in (of_tokens, padded)]
    assert_close(results[0][:1], results[1][:1], 1e-6)
    assert results[0][4].any()


def test_torch_compile_without_old_log_prob(device):
    arguments = {**batch_of(DEFAULT_METHODS["maspo"], device=device), "old_log_prob": None}
    eager = run_loss(linear_loss, arguments)
    compiled = torch.compile(lambda **given: linear_loss(**given), fullgraph=True, backend="aot_eager")
    assert_same_bits(run_loss(compiled, arguments), eager)


def test_a_gradient_of_the_old_policy_alone_is_a_swap(device):
    arguments = batch_of(DEFAULT_METHODS["maspo"], device=device)
    arguments["old_log_prob"].requires_grad_()
    with pytest.raises(ValueError, match="old_log_prob: expected a tensor without gradient, since hidden and weight do not require one"):
        linear_loss(**arguments)
    arguments = {**arguments, "old_log_prob": arguments["old_log_prob"].detach(), "advantages": arguments["advantages"].requires_grad_()}
    assert not linear_loss(**arguments).loss.requires_grad


@every_budget
@pytest.mark.parametrize("loss_agg_mode", [*AGG_MODES, None])
@pytest.mark.parametrize("counts", ["local", "global"])
@every_mode_of_the_op
def test_entropy_bonus(method, counts, loss_agg_mode, memory_budget, device):
    """As its twin, and as a term in linear_logprob's entropy beside policy_loss."""
    counts = {**method.global_counts, "loss_scale_factor": 7.0} if counts == "global" else {}
    arguments = batch_of(method, torch.float64, device)
    del arguments["rollout_is_weights"], arguments["ref_log_prob"]
    budget = None if memory_budget is None else 2 * memory_budget
    keywords = {**method.keywords, "loss_agg_mode": loss_agg_mode, "temperature": 1.3, **counts}
    actual = run_loss(torch.ops.maspo.linear_loss, arguments, memory_budget=budget, entropy_coef=0.7, **keywords)
    assert_close(actual, run_loss(reference.linear_loss, arguments, entropy_coef=0.7, **keywords), 1e-11)
    without = run_loss(torch.ops.maspo.linear_loss, arguments, memory_budget=budget, **keywords)
    assert_same_bits(actual[1:4], without[1:4])
    assert abs(actual[0] - without[0]) > 1e-4 and not torch.equal(actual[4], without[4])
    if loss_agg_mode is not None:
        agg = {"loss_agg_mode": loss_agg_mode, **counts}

        def by_hand(**given):
            loss, stats, _, _ = composition(**given, **of_mode(method), **agg, temperature=1.3, entropy_needed=is_shaped(method, {}))
            target = torch.where(given["response_mask"] != 0, given["target"], -100)
            head = {name: given[name] for name in HEAD}
            log_prob, entropy = maspo_ext.linear_logprob(**head, target=target, temperature=1.3)
            bonus = maspo_ext.reference.aggregate(entropy, given["response_mask"].double(), **agg)
            return loss - 0.7 * bonus, stats, log_prob.detach(), entropy.detach()

        assert_close(actual, run_loss(by_hand, arguments), 1e-11)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_entropy_bonus_in_every_dtype_packed_and_as_a_module(dtype, device):
    method = DEFAULT_METHODS["maspo"]
    arguments = batch_of(method, dtype, device)
    padded, of_tokens, keep = packed(arguments, [6, 1, 3, 5], 6)
    of_padded = run_loss(linear_loss, padded, entropy_coef=0.5)
    of_packed = run_loss(maspo_ext.LinearPolicyLoss(entropy_coef=0.5), of_tokens)
    assert_close(of_packed[:2], of_padded[:2], 1e-5)
    assert_close((of_packed[4], *of_packed[5:]), (of_padded[4][keep], *of_padded[5:]), tolerance(dtype, device))
    exact = run_loss(reference.linear_loss, converted(padded, torch.float64), entropy_coef=0.5)
    assert_close([value.double() for value in of_padded[4:]], exact[4:], 2 * tolerance(dtype, device))


def test_entropy_bonus_under_torch_compile(device):
    arguments = batch_of(DEFAULT_METHODS["maspo"], device=device)
    compiled = torch.compile(lambda **given: linear_loss(**given, entropy_coef=0.5), fullgraph=True, backend="aot_eager")
    assert_same_bits(run_loss(compiled, arguments), run_loss(linear_loss, arguments, entropy_coef=0.5))


@pytest.mark.parametrize("value, mode, error", [(-0.1, "maspo", ">= 0"), (float("nan"), "maspo", ">= 0 and finite"), (0.1, "bapo", "0 for ratio_mode='bapo'")])
def test_wrong_entropy_bonus(value, mode, error, device):
    arguments = batch_of(DEFAULT_METHODS[mode], device=device)
    with pytest.raises(ValueError, match=f"maspo_ext: entropy_coef: expected {error}, got"):
        linear_loss(**arguments, ratio_mode=mode, entropy_coef=value)
    with pytest.raises(ValueError, match=f"maspo_ext: entropy_coef: expected {error}, got"):
        maspo_ext.LinearPolicyLoss(mode, entropy_coef=value)
