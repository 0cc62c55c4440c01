"""The numbers and flags of every method: the config refuses a wrong one; a wrong number the fronts and the op too."""

import dataclasses
import re

import pytest

import maspo_ext

from .cases import DEFAULT_METHODS, op, random_batch
from .wrong import INF, NAN, NUMBERS, explains, named

CLIP_NUMBERS = [
    ({"clip_ratio_low": -0.2}, "clip_ratio_low", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_high": -0.2}, "clip_ratio_high", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "dual clip"),
]
TOO_MANY = "ratio_lower_step, ratio_upper_step", "at most 128 bounds to try"
# Rows as those of NUMBERS, of the other modes' fields: at least one wrong value of each.
BY_MODE = {
    "ppo": CLIP_NUMBERS,
    "grpo": CLIP_NUMBERS,
    "clip_higher": CLIP_NUMBERS,
    "dac": [
        ({"eps_low": -0.1}, "eps_low", ">= 0", "-0.1", "0.2"),
        ({"eps_high": -0.1}, "eps_high", ">= 0", "-0.1", "0.28"),
        ({"clip_ratio_c": 0.9}, "clip_ratio_c", "> 1", "0.9", "dual clip"),
    ],
    "entropy_adv": CLIP_NUMBERS
    + [
        ({"alpha": -0.4}, "alpha", ">= 0", "-0.4", "published: 0.4 with GRPO"),
        ({"kappa": 0.5}, "kappa", ">= 1", "0.5", "keeps its sign"),
    ],
    "bapo": CLIP_NUMBERS
    + [
        ({"adv_ratio_target": -1.0}, "adv_ratio_target", ">= 0", "-1.0", "1.0"),
        ({"ratio_lower_start": 0.0}, "ratio_lower_start", "> 0", "0.0", "bound of the ratio"),
        ({"ratio_upper_start": -1.2}, "ratio_upper_start", "> 0", "-1.2", "bound of the ratio"),
        ({"ratio_lower_max": 0.5}, "ratio_lower_max", ">= ratio_lower_start = 0.6", "0.5", "None searches nothing"),
        ({"ratio_upper_max": 1.1}, "ratio_upper_max", ">= ratio_upper_start = 1.2", "1.1", "None searches nothing"),
        ({"ratio_lower_step": -0.1}, "ratio_lower_step", ">= 0", "-0.1", "0 searches nothing"),
        ({"ratio_upper_step": -0.1}, "ratio_upper_step", ">= 0", "-0.1", "0 searches nothing"),
        ({"ratio_lower_max": 1.1}, "ratio_lower_max", "<= 1.0", "1.1", "clip the ratio 1"),
        ({"ratio_upper_start": 0.9}, "ratio_upper_start", ">= 1.0", "0.9", "clip the ratio 1"),
        ({"eps": -1e-8}, "eps", ">= 0", "-1e-08", "1e-8"),
        ({"ratio_upper_step": 0.001}, *TOO_MANY, "about 5 lower ones and about 801 upper ones", "larger steps"),
        ({"ratio_lower_step": 1e-9}, *TOO_MANY, "about 2e+08 lower ones and about 17 upper ones", "larger steps"),
        ({"ratio_upper_step": 5e-324}, *TOO_MANY, "about 5 lower ones and about 1e+300 upper ones", "larger steps"),
    ],
    "sapo": [
        ({"tau_pos": 0.0}, "tau_pos", "> 0", "0.0", "1.0"),
        ({"tau_neg": -1.05}, "tau_neg", "> 0", "-1.05", "1.05"),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "dual clip"),
    ],
}
NUMBER_FIELDS = {
    mode: [name for name, value in dataclasses.asdict(method.config).items() if not isinstance(value, bool)]
    for mode, method in DEFAULT_METHODS.items()
}
OF_MODES = [(mode, *row) for mode, rows in BY_MODE.items() for row in rows]
# As in NUMBERS, what follows from an infinite field may be named instead of it.
OF_MODES += [
    (mode, {name: value}, name, "", repr(value), "")
    for mode in BY_MODE
    for name in NUMBER_FIELDS[mode]
    for value in (NAN, INF, -INF)
    if value != INF or name != "clip_ratio_c"
]


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(NUMBERS))
def test_config_rejects_what_the_op_rejects(wrong, name, expected, got, remedy):
    with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
        maspo_ext.MaspoConfig(**wrong)


@pytest.mark.parametrize(
    "mode, wrong, name, expected, got, remedy",
    [pytest.param(*row, id=f"{row[0]}-{row[2]}-{i}") for i, row in enumerate(OF_MODES)],
)
def test_wrong_value_of_a_mode(mode, wrong, name, expected, got, remedy):
    """By the config, by the op, by both fronts, with one message."""
    batch = random_batch(4, 6, entropy=True)
    method = DEFAULT_METHODS[mode]
    with pytest.raises(ValueError) as of_config:
        method.with_(**wrong)
    message = str(of_config.value)
    assert re.match(explains(name, expected, got, remedy), message)
    values = dict(zip(dataclasses.asdict(method.config), method.config.hyper(), strict=True)) | wrong
    for call in (
        lambda: op(**batch, ratio_mode=mode, hyper=list(values.values())),
        lambda: maspo_ext.policy_loss(**batch, ratio_mode=mode, **wrong),
        lambda: maspo_ext.PolicyLoss(mode, **wrong),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


MAY_BE_NONE = ("ratio_lower_start", "ratio_lower_max", "ratio_upper_start", "ratio_upper_max")


@pytest.mark.parametrize("value", ["0.3", None, True, [0.3]], ids=repr)
@pytest.mark.parametrize("mode, name", [(mode, name) for mode, names in NUMBER_FIELDS.items() for name in names])
def test_config_rejects_what_is_no_number(mode, name, value):
    if value is None and name in MAY_BE_NONE:
        assert getattr(DEFAULT_METHODS[mode].with_(**{name: None}).config, name) is None
        return
    got = re.escape(f"{value!r} ({type(value).__name__})")
    with pytest.raises(TypeError, match=rf"maspo_ext: {name}: expected a number, .*, got {got}\. "):
        DEFAULT_METHODS[mode].with_(**{name: value})


@pytest.mark.parametrize("value", [1, None, "yes"], ids=repr)
@pytest.mark.parametrize(
    "mode, name, remedy", [("maspo", "gate_gradient", "published"), ("bapo", "upper_first", "order of")]
)
def test_config_rejects_a_flag_that_is_no_bool(mode, name, remedy, value):
    with pytest.raises(
        TypeError, match=rf"maspo_ext: {name}: expected True or False, got {value!r}\. False is the {remedy}"
    ):
        DEFAULT_METHODS[mode].with_(**{name: value})


def test_every_number_has_a_wrong_value_above():
    rows = {"maspo": NUMBERS, **BY_MODE}
    for mode, fields in NUMBER_FIELDS.items():
        given = {name for wrong, *_ in rows.get(mode, ()) for name in wrong}
        assert given >= set(fields), f"{mode}: no wrong value of {set(fields) - given}"
