"""A torch without its private functions: a warning, and results and refusals as ever."""

import importlib
import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import maspo_ext
from maspo_ext import derivatives, torch_internals

from . import test_fronts, test_gradients
from .cases import random_batch

LOOKED_UP = re.findall(r'_look_up\("(.+?)"', Path(torch_internals.__file__).read_text())
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def looked_up_again():
    """Both anew; the functions that others have from them see it."""
    importlib.reload(torch_internals)
    importlib.reload(derivatives)


@pytest.fixture
def without(monkeypatch):
    """Makes torch one without this, as far as ``maspo_ext`` sees."""

    def make(*names):
        with monkeypatch.context() as patch:
            for name in names:
                holder, _, last = name.rpartition(".")
                patch.delattr(attrgetter(holder)(torch), last)
            expected = ".*".join(map(re.escape, names))
            with pytest.warns(RuntimeWarning, match=rf"^maspo_ext: torch \S+: expected .*{expected}.*, got .*Results are right"):
                looked_up_again()

    yield make
    looked_up_again()


def test_this_torch_has_all():
    assert torch_internals.missing == [] and len(LOOKED_UP) == 7


def test_nobody_else_asks_for_what_is_private():
    package = Path(maspo_ext.__file__).parent
    asking = [path for path in package.rglob("*.py") if re.search(r"\btorch\.(\w+\.)*_[A-Za-z]", path.read_text())]
    assert asking == [], "torch_internals.py names them by strings"


@pytest.mark.parametrize("names", [*([name] for name in LOOKED_UP), LOOKED_UP], ids=lambda names: names[0] if len(names) == 1 else "all")
def test_results_stay_right(names, without):
    without(*names)
    test_gradients.test_a_batch_of_gradients_of_the_loss("cpu")
    test_gradients.test_a_backward_pass_traced_by_make_fx("real")
    test_fronts.test_vmap_keeps_the_gradient("cpu")
    assert_right_twice(maspo_ext.policy_loss, random_batch(3, 5))


def assert_right_twice(front, batch):
    """The gradient of the first of two backward passes, times a factor, and of the second."""
    log_prob = batch.pop("log_prob").requires_grad_()
    (expected,) = torch.autograd.grad(maspo_ext.reference.loss(log_prob, **batch)[0], log_prob)
    loss = front(log_prob, **batch)[0] * 3
    for retain_graph in (True, False):
        (grad,) = torch.autograd.grad(loss, log_prob, retain_graph=retain_graph)
        torch.testing.assert_close(grad, 3 * expected, rtol=1e-12, atol=1e-15)


def test_torch_func_is_refused_by_us_or_by_torch(without):
    without("_C._are_functorch_transforms_active")
    batch = random_batch(3, 5)
    log_prob = batch.pop("log_prob")
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(lambda log_prob: maspo_ext.policy_loss(log_prob, **batch).loss)(log_prob)
