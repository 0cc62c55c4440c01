"""``inplace_backward``: the same gradient, in the memory of the logits; refused where that is unsafe."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import maspo_ext

from .cases import FLOAT_DTYPES, IGNORED, assert_same_bits, random_rows, upstream


def run(logits, target, inplace_backward, cut=lambda logits: logits):
    """The gradient in ``cut(logits * 1)``, and those logits."""
    made = cut(logits.detach().requires_grad_() * 1)
    results = maspo_ext.logprob(made, target, 0.7, inplace_backward=inplace_backward)
    (grad,) = torch.autograd.grad(results, made, [u.to(results[0]) for u in upstream(target.shape)])
    return grad, made


@pytest.mark.parametrize("words", [1, 5, 2051, 4096])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_same_bits_in_the_memory_of_the_logits(dtype, words, device):
    logits, target = random_rows(6, words, dtype, device)
    target[2] = IGNORED
    logits[2] = torch.nan
    expected, untouched = run(logits, target, False)
    assert torch.equal(untouched.nan_to_num(), logits.nan_to_num()) and expected.data_ptr() != untouched.data_ptr()
    grad, made = run(logits, target, True)
    assert_same_bits([grad], [expected])
    assert grad.data_ptr() == made.data_ptr()
    assert_same_bits([made.detach()], [expected])


CUTS = {
    "slice of rows": (lambda logits: logits.view(3, 4, 33)[:, :-1], (3, 3)),
    "slice of words": (lambda logits: logits.view(3, 4, 33)[..., 1:], (3, 4)),
    "transposed": (lambda logits: logits.view(3, 4, 33).transpose(0, 1), (4, 3)),
    "view": (lambda logits: logits.view(3, 4, 33), (3, 4)),
}


@pytest.mark.parametrize("name", CUTS)
def test_views_of_what_a_forward_pass_made(name, device):
    cut, rows = CUTS[name]
    logits, _ = random_rows(12, 33, device=device)
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    (expected, _), (grad, made) = run(logits, target, False, cut), run(logits, target, True, cut)
    assert_same_bits([grad], [expected])
    assert grad.data_ptr() == made.data_ptr()


def test_gradient_of_the_leaf_behind(device):
    logits, target = random_rows(6, 33, device=device)
    grads = []
    for inplace_backward in (False, True):
        leaf = logits.clone().requires_grad_()
        log_prob, entropy = maspo_ext.logprob(3 * leaf, target, inplace_backward=inplace_backward)
        (log_prob.sum() - entropy.sum()).backward()
        grads.append(leaf.grad)
    assert_same_bits(grads[:1], grads[1:])


@pytest.mark.parametrize("leaf", ["leaf", "view of a leaf", "slice of a leaf", "view of a view"])
def test_leaves_are_refused(leaf, device):
    logits, target = random_rows(6, 33, device=device)
    logits.requires_grad_()
    logits = {
        "leaf": lambda: logits,
        "view of a leaf": lambda: logits.view(6, 33),
        "slice of a leaf": lambda: logits[:, 1:],
        "view of a view": lambda: logits.view(3, 66).view(6, 33),
    }[leaf]()
    with pytest.raises(
        ValueError, match="inplace_backward: expected logits that a forward pass made, got a leaf.*False"
    ):
        maspo_ext.logprob(logits, target, inplace_backward=True)


def test_expanded_logits_are_refused(device):
    logits, _ = random_rows(1, 33, device=device)
    with pytest.raises(ValueError, match="inplace_backward: expected logits with memory of their own, got expanded"):
        target = torch.zeros(4, dtype=torch.int64, device=device)
        maspo_ext.logprob((logits.requires_grad_() * 1).expand(4, 33), target, inplace_backward=True)


def test_compile_is_refused(device):
    logits, target = random_rows(6, 33, device=device)

    def function(leaf):
        return maspo_ext.logprob(leaf * 1, target, inplace_backward=True).log_prob

    torch._dynamo.reset()
    with pytest.raises(Exception, match="inplace_backward: expected False under torch.compile and for subclasses of Tensor, got True"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(logits.requires_grad_())
    torch._dynamo.reset()


def test_without_a_gradient_it_means_nothing(device):
    logits, target = random_rows(6, 33, device=device)
    before = logits.clone()
    assert_same_bits(maspo_ext.logprob(logits, target, inplace_backward=True), maspo_ext.logprob(logits, target))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("saved_by", ["their maker", "an op before", "an op after"])
def test_another_op_that_saved_the_logits(saved_by, device):
    """Raises where its backward comes later; where it comes first, the gradient is right."""
    logits, target = random_rows(6, 33, torch.float64, device)
    grads = []
    for inplace_backward in (False, True):
        leaf = logits.clone().requires_grad_()
        made = leaf.exp() if saved_by == "their maker" else leaf * 1
        before = made.square().sum() if saved_by == "an op before" else 0
        loss = before + maspo_ext.logprob(made, target, inplace_backward=inplace_backward).log_prob.sum()
        loss = loss + made.square().sum() if saved_by == "an op after" else loss
        if inplace_backward and saved_by != "an op after":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            return
        grads += torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


HOOKS = {
    "checkpoint": lambda function, leaf: checkpoint(function, leaf, use_reentrant=False),
    "save_on_cpu": lambda function, leaf: _with(torch.autograd.graph.save_on_cpu(), function, leaf),
    "hooks": lambda function, leaf: _with(torch.autograd.graph.saved_tensors_hooks(_same, _same), function, leaf),
}


def _same(value):
    return value


def _with(hooks, function, leaf):
    with hooks:
        return function(leaf)


@pytest.mark.parametrize("hooks", HOOKS)
def test_under_saved_tensor_hooks_nothing_is_written_over(hooks, device):
    """Nobody looks there at the version of what another op saved: it would see gradients in place of logits, in silence."""
    logits, target = random_rows(6, 33, torch.float64, device)
    grads = []
    for inplace_backward in (False, True):

        def function(leaf, inplace_backward=inplace_backward):
            made = leaf * 1
            before = made.square().sum()  # so its backward comes after that of logprob
            return before + maspo_ext.logprob(made, target, inplace_backward=inplace_backward).log_prob.sum()

        leaf = logits.clone().requires_grad_()
        grads += torch.autograd.grad(HOOKS[hooks](function, leaf), leaf)
    assert_same_bits(grads[:1], grads[1:])


def test_a_second_backward_raises(device):
    logits, target = random_rows(6, 33, device=device)
    loss = maspo_ext.logprob(logits.requires_grad_() * 1, target, inplace_backward=True).log_prob.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
