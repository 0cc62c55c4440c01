"""The peers of the benchmarks compute what they stand for: the official formula."""

import runpy
from pathlib import Path

import pytest
import torch

from ..op.golden import METRICS, Golden

PEERS = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"))
# With the published defaults and a mean over all tokens.
CASES = ["maspo_default_typical", "maspo_agg_token-mean", "maspo_big64x513_token-mean", "maspo_1x1_token-mean"]


@pytest.mark.parametrize("name", CASES)
def test_eager_maspo_is_the_official_formula(name):
    case = Golden(name)
    batch = case.batch(torch.float64, "cpu")
    log_prob = batch.pop("log_prob").requires_grad_()
    loss, metrics = PEERS["eager_maspo"](log_prob, **batch)
    (grad,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(grad, case.grad, rtol=1e-9, atol=1e-14 * float(case.grad.abs().max()))
    assert abs(loss.item() - case.loss) <= 1e-12 * case.loss_scale
    for metric, value in zip(METRICS, metrics.tolist(), strict=True):
        assert value == pytest.approx(case.metric(metric), abs=2e-7, rel=2e-7)
