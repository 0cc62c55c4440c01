"""CuPy arrays in and out, and CuPy code as an oracle that shares nothing with our kernels or with torch."""

import subprocess
import sys

import cupy
import numpy as np
import pytest
import torch

import maspo_ext.cupy

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CuPy arrays need a GPU")


def batch_of(dtype, seed=0, rows=5, cols=300):
    draw = cupy.random.default_rng(seed)
    old = -3 * cupy.abs(draw.standard_normal((rows, cols)))
    arrays = {
        "log_prob": old + 0.5 * draw.standard_normal((rows, cols)),
        "old_log_prob": old,
        "advantages": 2 * draw.standard_normal((rows, cols)),
    }
    return {name: value.astype(dtype) for name, value in arrays.items()} | {
        "response_mask": draw.random((rows, cols)) < 0.7
    }


def maspo(log_prob, old_log_prob, advantages, response_mask, sigma_base=1.0, alpha=0.3, sigma_high=10.0, beta=0.03):
    """Loss and gradient of MASPO by the formula, token-mean."""
    new, old, adv = (value.astype(cupy.float64) for value in (log_prob, old_log_prob, advantages))
    ratio = cupy.exp(cupy.clip(new - old, -20, 20))
    mass = cupy.clip(sigma_base * cupy.exp(-alpha * old), sigma_base, sigma_high)
    risk = cupy.clip(cupy.where(adv > 0, 1 + beta * adv, 1 / (1 - beta * adv)), 0.1, 10.0)
    overshoots = ((adv > 0) & (ratio > 1)) | ((adv < 0) & (ratio < 1))
    gate = cupy.where(overshoots, cupy.exp(-0.5 * ((ratio - 1) / (mass * risk)) ** 2), 1.0)
    token_loss = -adv * gate * ratio * response_mask / response_mask.sum()
    return token_loss.sum(), token_loss


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_like_the_formula_in_cupy(dtype, rtol):
    batch = batch_of(dtype)
    output = maspo_ext.cupy.policy_loss(**batch)
    loss, grad = maspo(**batch)
    assert isinstance(output.loss, cupy.ndarray) and output.grad.dtype == dtype and output.grad.shape == (5, 300)
    cupy.testing.assert_allclose(output.loss, loss, rtol=rtol)
    cupy.testing.assert_allclose(output.grad, grad, rtol=rtol, atol=rtol * float(abs(grad).max()))


@needs_gpu
@pytest.mark.cuda
def test_no_copy_and_on_the_current_stream():
    with cupy.cuda.Stream(non_blocking=True):
        batch = batch_of(np.float32)
        seen = {}

        def spy(*args, **keywords):
            seen.update(keywords, stream=torch.cuda.current_stream().cuda_stream)
            return original(*args, **keywords)

        original, maspo_ext.cupy.torch_policy_loss = maspo_ext.cupy.torch_policy_loss, spy
        try:
            maspo_ext.cupy.policy_loss(**batch)
        finally:
            maspo_ext.cupy.torch_policy_loss = original
        assert seen["stream"] == cupy.cuda.get_current_stream().ptr
        assert all(seen[name].data_ptr() == batch[name].data.ptr for name in batch)


@needs_gpu
@pytest.mark.cuda
def test_every_mode_has_the_bits_of_the_torch_front():
    batch = batch_of(np.float32)
    entropy = cupy.abs(batch["advantages"])
    for ratio_mode in maspo_ext.RATIO_MODES:
        keywords = {"ratio_mode": ratio_mode} | ({"entropy": entropy} if ratio_mode == "entropy_adv" else {})
        output = maspo_ext.cupy.policy_loss(**batch, **keywords)
        tensors = {name: torch.from_dlpack(value) for name, value in batch.items()}
        tensors["log_prob"].requires_grad_()
        keywords = {name: torch.from_dlpack(value) if name == "entropy" else value for name, value in keywords.items()}
        loss, _ = maspo_ext.policy_loss(**tensors, **keywords)
        loss.backward()
        assert float(output.loss) == float(loss.detach())
        assert cupy.array_equal(output.grad, cupy.from_dlpack(tensors["log_prob"].grad))


@pytest.mark.parametrize("value", [np.zeros((2, 3)), torch.zeros(2, 3), [[0.0]]], ids=["numpy", "torch", "list"])
def test_other_arrays_are_refused_and_named(value):
    with pytest.raises(
        TypeError, match=r"maspo_ext\.cupy: log_prob: expected a cupy\.ndarray, got (ndarray|Tensor|list)\. Convert it"
    ):
        maspo_ext.cupy.policy_loss(value, value, value, value)


def test_without_cupy_the_remedy_is_named():
    code = "import sys; sys.modules['cupy'] = None; import maspo_ext, maspo_ext.cupy"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert completed.returncode != 0
    assert (
        "maspo_ext.cupy: CuPy: expected to be installed" in completed.stderr
        and "pip install cupy-cuda13x" in completed.stderr
    )
