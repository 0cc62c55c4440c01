"""The op and its plain-torch twin against vectors of the official codes, at the tolerances of tests/golden/README.md."""

import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

import maspo_ext

from .cases import reference, run, run_unvalidated
from .golden import FOLDER, METRICS, NAMES, Golden

CASES = {name: Golden(name) for name in NAMES}
REJECTED = sorted(name for name, case in CASES.items() if case.rejected)
# gradient rtol, gradient atol / max|g|, loss tolerance / loss scale
TOLERANCES = {torch.float64: (1e-9, 1e-14, 1e-12), torch.float32: (2e-5, 1e-6, 3e-5)}
# The official denominators carry + 1e-8, which is lost in a count of float32, and which we do not reproduce.
FLOAT_COUNT_TOLERANCES = {torch.float64: (1e-7, 1e-14, 1e-7), torch.float32: TOLERANCES[torch.float32]}
# The official s (1 - s) of SAPO cancels: rounding, and from where on nothing is left.
SAPO_CANCELLATION = {torch.float64: (2.3e-16, 38), torch.float32: (6e-8, 18)}


def policy_loss(case, batch):
    def function(**arguments):
        output = maspo_ext.policy_loss(**arguments, ratio_mode=case.ratio_mode, **case.hyper, **case.aggregation)
        return output.loss, output.stats.tensor

    return run(batch, function)


def kernel(case, batch):
    """Below the validation, which rejects the settings of some cases."""
    h = case.hyper
    names = ("sigma_base", "alpha", "sigma_high", "adv_low", "adv_high", "beta_pos", "beta_neg")
    hyper = [*(h[name] for name in names), 0.0, 1 - h["clip_low"], 1 + h["clip_high"]]
    return run_unvalidated(batch, method="maspo", hyper=hyper, clip_ratio_c=h["clip_c"], **case.aggregation)


def twin(case, batch):
    if not case.rejected:
        return run(batch, reference, **case.config().op_keywords(case.ratio_mode), **case.aggregation)
    config = object.__new__(maspo_ext.MaspoConfig)  # unchecked
    given = {maspo_ext.MaspoConfig.aliases.get(name, name): value for name, value in case.hyper.items()}
    for name, field in maspo_ext.MaspoConfig.__dataclass_fields__.items():
        object.__setattr__(config, name, given.pop(name, field.default))
    assert not given
    return run(batch, partial(maspo_ext.reference.unchecked_loss, config), **case.aggregation)


IMPLEMENTATIONS = {
    "op": lambda case, batch: kernel(case, batch) if case.rejected else policy_loss(case, batch),
    "reference": twin,
}


def test_all_cases_are_here():
    modes = Counter(case.meta["mode"] for case in CASES.values())
    in_readme = re.findall(r"^\| `(\w+)` \| (\d+) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert modes == {mode: int(count) for mode, count in in_readme}
    assert sum(name.startswith("hazard_") for name in NAMES) == sum(case.is_hazard for case in CASES.values()) == 22
    assert len(REJECTED) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden(implementation, dtype, name, device):
    case = CASES[name]
    result = IMPLEMENTATIONS[implementation](case, case.batch(dtype, device))
    rtol, atol, loss_tolerance = (FLOAT_COUNT_TOLERANCES if case.float_count else TOLERANCES)[dtype]

    assert abs(float(result.loss) - case.loss) <= loss_tolerance * case.loss_scale
    assert result.grad.dtype == dtype
    atol *= float(case.grad.abs().max())
    if case.ratio_mode == "sapo":
        rounding, reach = SAPO_CANCELLATION[dtype]
        rows = case.aggregation.get("global_batch_size") or int(case.arrays["response_mask"].any(axis=1).sum())
        weight = case.aggregation.get("dp_size", 1) / rows
        tau = min(case.hyper.values())
        atol += 4 * float(np.nanmax(np.abs(case.arrays["advantages"]))) * weight * (reach / tau + 1) * rounding
    torch.testing.assert_close(result.grad.double().cpu(), case.grad, rtol=rtol, atol=atol)
    stats = maspo_ext.PolicyLossStats(result.stats, maspo_ext.stat_names(case.ratio_mode)).to_dict()
    for metric in METRICS:
        expected = case.metric(metric)
        assert abs(stats[f"actor/{metric}"] - expected) <= 2e-7 * max(1.0, abs(expected)), metric
    if case.ratio_mode == "bapo" and not case.is_hazard:
        assert stats["actor/bapo_clip_low"] == case.metric("clip_low")
        assert stats["actor/bapo_clip_high"] == case.metric("clip_high")
        assert stats["actor/bapo_pos_neg_ratio"] == pytest.approx(case.metric("pos_neg_ratio"), rel=1e-5)
    if case.ratio_mode == "dac" and not case.is_hazard:
        for bound in ("low", "high"):
            mean = case.arrays[f"dac_{bound}_f64"][case.arrays["response_mask"] != 0].mean()
            assert stats[f"actor/dac_clip_{bound}_mean"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("name", REJECTED)
def test_settings_out_of_range_are_rejected(name, device):
    case = CASES[name]
    with pytest.raises(ValueError, match="sigma_high: expected >= sigma_base"):
        maspo_ext.policy_loss(**case.batch(torch.float32, device), **case.hyper, **case.aggregation)
