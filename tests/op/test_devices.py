"""Tensors on a device that this build has no kernels for, shown by fake tensors: no such device is needed."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import maspo_ext
from maspo_ext.checks import tensors


def calls(device):
    """Every function that takes tensors of the user's, by the tensor that its errors name."""
    ones = torch.ones(2, 3, device=device)
    target = torch.zeros(2, 3, dtype=torch.int64, device=device)
    hidden, weight = torch.ones(2, 3, 4, device=device), torch.ones(5, 4, device=device)
    return {
        "log_prob": lambda: maspo_ext.policy_loss(ones, ones, ones, ones),
        "logits": lambda: maspo_ext.logprob(hidden, target),
        "hidden": lambda: maspo_ext.linear_logprob(hidden, weight, target),
        "hidden of linear_loss": lambda: maspo_ext.linear_loss(hidden, weight, target, ones, ones, ones),
    }


@pytest.mark.parametrize("front", calls("meta"))
def test_cuda_tensors_and_a_build_without_cuda(front, monkeypatch):
    monkeypatch.setattr(tensors, "_DEVICES", ("cpu", "meta"))
    name = front.split()[0]
    with FakeTensorMode():
        expected = f"^maspo_ext: {name}: expected a CPU tensor, since maspo_ext was built without CUDA kernels, got cuda:0"
        with pytest.raises(ValueError, match=rf"{expected}.*MASPO_CUDA=1.*{name}\.cpu\(\)\.$"):
            calls("cuda")[front]()


@pytest.mark.parametrize("front", calls("meta"))
def test_another_device(front):
    name = front.split()[0]
    with FakeTensorMode(), pytest.raises(ValueError, match=f"^maspo_ext: {name}: expected a cpu or cuda device, got mps:0.*Move"):
        calls("mps")[front]()


def test_a_build_for_gpus_takes_their_tensors():
    assert ("cuda" in tensors._DEVICES) == maspo_ext._build_info.BUILD["cuda"]
