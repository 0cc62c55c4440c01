"""The peers of the benchmarks compute what they stand for: the official formulas."""

import runpy
from pathlib import Path

import pytest
import torch

import maspo_ext

from ..op.golden import METRICS, NAMES, Golden

EAGER = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"))["EAGER"]
# The cases of entropy_adv have PPO's dual clip.
OF_CASES = {"entropy_adv": {"clip_ratio_c": 3.0}}
PEER_OPTIONS = {"entropy_adv": {"c": 3.0}}


def fits(case: Golden, mode: str) -> bool:
    """Whether a case has the defaults and the aggregation that the peer has."""
    if case.ratio_mode != mode or case.rejected or case.is_hazard or "rollout_is_weights" in case.arrays:
        return False
    default = maspo_ext.RATIO_MODES[mode](**OF_CASES.get(mode, {}))
    agg = {"sapo": "seq-mean-token-mean"}.get(mode, "token-mean")
    counts = set(case.aggregation) - (
        {"global_batch_size"} if agg == "token-mean" else set()
    )  # which that mode ignores
    return case.config().hyper() == default.hyper() and case.aggregation["loss_agg_mode"] == agg and len(counts) == 1


CASES = [(mode, name) for mode in EAGER for name in NAMES if fits(Golden(name), mode)]


def test_every_peer_has_a_case():
    assert {mode for mode, _ in CASES} == set(EAGER)


@pytest.mark.parametrize("mode, name", CASES)
def test_peer_is_the_official_formula(mode, name):
    case = Golden(name)
    batch = case.batch(torch.float64, "cpu")
    batch["log_prob"].requires_grad_()
    loss, metrics = EAGER[mode](**batch, **PEER_OPTIONS.get(mode, {}))
    (grad,) = torch.autograd.grad(loss, batch["log_prob"])
    rtol = 1e-7 if case.float_count else 1e-9
    torch.testing.assert_close(grad, case.grad, rtol=rtol, atol=1e-13 * float(case.grad.abs().max()))
    assert abs(loss.item() - case.loss) <= rtol * case.loss_scale
    for metric, value in zip(METRICS, metrics.tolist(), strict=True):
        assert value == pytest.approx(case.metric(metric), abs=2e-7, rel=2e-7)
