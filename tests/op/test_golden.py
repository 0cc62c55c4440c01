"""The op and its plain-torch twin against vectors of the official code, at the tolerances of tests/golden/README.md."""

import pytest
import torch

import maspo_ext

from .cases import op, reference, run, run_unvalidated
from .golden import METRICS, NAMES, Golden

CASES = {name: Golden(name) for name in NAMES}
REJECTED = sorted(name for name, case in CASES.items() if case.rejected)
# gradient rtol, gradient atol / max|g|, loss tolerance / loss scale
TOLERANCES = {torch.float64: (1e-9, 1e-14, 1e-12), torch.float32: (2e-5, 1e-6, 3e-5)}
# The official denominators of a float mask carry + 1e-8, which we do not reproduce.
FLOAT_MASK_TOLERANCES = {torch.float64: (1e-7, 1e-14, 1e-7), torch.float32: TOLERANCES[torch.float32]}
IMPLEMENTATIONS = {
    "op": lambda case, batch: run_unvalidated(batch, **case.keywords) if case.rejected else run(batch, **case.keywords),
    "reference": lambda case, batch: run(batch, reference, **case.keywords),
}


def test_all_cases_are_here():
    hazards = [name for name in NAMES if name.startswith("hazard_")]
    assert (len(NAMES), len(hazards), len(REJECTED)) == (64, 14, 4)
    assert all(CASES[name].is_hazard == (name in hazards) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden(implementation, dtype, name, device):
    case = CASES[name]
    result = IMPLEMENTATIONS[implementation](case, case.batch(dtype, device))
    rtol, atol, loss_tolerance = (FLOAT_MASK_TOLERANCES if case.mask_dtype == "float" else TOLERANCES)[dtype]

    assert abs(float(result.loss) - case.loss) <= loss_tolerance * case.loss_scale
    assert result.grad.dtype == dtype
    atol *= float(case.grad.abs().max())
    torch.testing.assert_close(result.grad.double().cpu(), case.grad, rtol=rtol, atol=atol)
    stats = maspo_ext.PolicyLossStats(result.stats).to_dict()
    for metric in METRICS:
        expected = case.metric(metric)
        assert abs(stats[f"actor/{metric}"] - expected) <= 2e-7 * max(1.0, abs(expected)), metric


@pytest.mark.parametrize("name", REJECTED)
def test_settings_out_of_range_are_rejected(name, device):
    case = CASES[name]
    with pytest.raises(ValueError, match="sigma_high: expected >= sigma_base"):
        op(**case.batch(torch.float32, device), **case.keywords)
