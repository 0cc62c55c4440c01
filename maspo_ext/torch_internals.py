"""What only private functions of torch tell, which another torch may have elsewhere: each is looked up here and nowhere else.

Where there is none, the answer is the one by which results stay right, and calls take longer or more memory; and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch.autograd import forward_ad

from maspo_ext.errors import message

missing: list[str] = []


def _look_up(name: str, otherwise: Any) -> Any:
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        missing.append(f"torch.{name}")
        return otherwise


def _unknown(*_: Any) -> bool:
    return True


def _make_fx_mode() -> Callable[[], Any]:
    mode_of, make_fx = _look_up("_C._get_dispatch_mode", None), _look_up("_C._TorchDispatchModeKey.PROXY", None)
    return _unknown if mode_of is None or make_fx is None else partial(mode_of, make_fx)


# make_fx's mode, or None where make_fx does not trace.
make_fx_mode = _make_fx_mode()

# Whether a tensor is a batch of autograd's own vmap (is_grads_batched).
is_batched_by_autograd = _look_up("_C._functorch.is_legacy_batchedtensor", _unknown)

# Whether there may be dual tensors of forward mode.
_level = _look_up("autograd.forward_ad._current_level", None)
may_be_dual = _unknown if _level is None else lambda: forward_ad._current_level >= 0

# Whether torch.func differentiates with respect to a tensor. Where nobody knows, it is taken for one that it does not.
is_differentiated = _look_up("_C._functorch.is_gradtrackingtensor", lambda _: False)

# Whether the graph of the backward pass that runs is kept for another. What torch's own compiled functions ask before they
# write over saved tensors.
keeps_graph = _look_up("_C._autograd._get_current_graph_task_keep_graph", _unknown)

# Whether a call is within torch.func's grad, vmap or the like; what torch's own autograd.Function asks. Where nobody knows, a
# call may be, and so goes through its op; but it is not refused for it: torch itself refuses what there is not.
_is_transformed = _look_up("_C._are_functorch_transforms_active", None)
may_be_transformed = _is_transformed or _unknown
is_transformed = _is_transformed or (lambda: False)


def guard_or_true(condition: Any) -> bool:
    """``condition``, where the symbols in it are known while a graph is made; else True."""
    from torch.fx.experimental import symbolic_shapes  # loaded by then, and not by torch itself

    return symbolic_shapes.guard_or_true(condition)


if missing:
    remedy = "Results are right all the same, calls take longer or more memory. A newer maspo_ext may know where it is now."
    warnings.warn(
        message(f"torch {torch.__version__}", ", ".join(missing), "a torch without", remedy), RuntimeWarning, stacklevel=2
    )
