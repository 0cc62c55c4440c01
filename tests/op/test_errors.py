"""Every wrong argument: the message names it, what was expected, what came, and what to do."""

import math
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch

import maspo_ext

from .cases import op, random_batch

NAN, INF = math.nan, math.inf


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


# arguments that differ from a right call | error | argument | expected | got | remedy; the batch is [4, 6], float32
NUMBERS = [
    ({"alpha": -0.1}, "alpha", ">= 0", "-0.1", "exponent"),
    ({"sigma_base": 0.0}, "sigma_base", "> 0", "0.0", "1.0"),
    ({"sigma_base": -1.0}, "sigma_base", "> 0", "-1.0", "1.0"),
    ({"sigma_high": 0.5}, "sigma_high", ">= sigma_base = 1.0", "0.5", "10.0"),
    ({"sigma_base": 3.0, "sigma_high": 2.0}, "sigma_high", ">= sigma_base = 3.0", "2.0", "10.0"),
    ({"adv_low": 0.0}, "adv_low", "> 0", "0.0", "0.1"),
    ({"adv_low": -2.0}, "adv_low", "> 0", "-2.0", "0.1"),
    ({"adv_low": 11.0}, "adv_high", ">= adv_low = 11.0", "10.0", "10.0"),
    ({"adv_low": 2.0, "adv_high": 1.0}, "adv_high", ">= adv_low = 2.0", "1.0", "10.0"),
    ({"beta_pos": -0.1}, "beta_pos", ">= 0", "-0.1", "0.03"),
    ({"beta_neg": -0.1}, "beta_neg", ">= 0", "-0.1", "0.03"),
    ({"clip_ratio_low": -0.2}, "clip_ratio_low", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_high": -0.2}, "clip_ratio_high", ">= 0", "-0.2", "0.2"),
    ({"clip_ratio_c": 1.0}, "clip_ratio_c", "> 1", "1.0", "3.0"),
]
HYPER = ("sigma_base", "alpha", "sigma_high", "adv_low", "adv_high", "beta_pos", "beta_neg")
HYPER += ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c")
# With sigma_base or adv_low = inf no upper bound is left, but the message is still about them, not about the bound.
NUMBERS += [({name: value}, name, "", repr(value), "") for name in HYPER for value in (NAN, INF, -INF)]

AGGREGATION = [
    (
        {"loss_agg_mode": "mean"},
        "loss_agg_mode",
        "one of token-mean, token-sum, seq-mean-token-sum",
        "'mean'",
        "Choose",
    ),
    ({"loss_agg_mode": ""}, "loss_agg_mode", "one of token-mean", "''", "Choose"),
    ({"loss_agg_mode": "Token-Mean"}, "loss_agg_mode", "one of token-mean", "'Token-Mean'", "Choose"),
    ({"dp_size": 0}, "dp_size", "> 0", "0", "data-parallel ranks"),
    ({"dp_size": -2}, "dp_size", "> 0", "-2", "data-parallel ranks"),
    ({"batch_num_tokens": -1}, "batch_num_tokens", ">= 0", "-1", "None counts locally"),
    ({"global_batch_size": -1}, "global_batch_size", ">= 0", "-1", "None counts locally"),
    ({"loss_scale_factor": 0.0}, "loss_scale_factor", "> 0", "0.0", "width T"),
    ({"loss_scale_factor": NAN}, "loss_scale_factor", "> 0", "nan", "width T"),
    ({"dp_size": 2}, "batch_num_tokens", "count over all 2 data-parallel ranks.*'token-mean'", "None", "all_reduce"),
    ({"dp_size": 2, "global_batch_size": 8}, "batch_num_tokens", "count over all 2", "None", "all_reduce"),
    *(
        (
            {"dp_size": 3, "batch_num_tokens": 8, "loss_agg_mode": mode},
            "global_batch_size",
            f"all 3.*'{mode}'",
            "None",
            "all_reduce",
        )
        for mode in ("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    ),
]

SHAPES = [
    ({"log_prob": ones(24)}, "log_prob", r"shape \[B, T\]", r"\[24\]", "batch dimension"),
    ({"log_prob": ones(4, 6, 1)}, "log_prob", r"shape \[B, T\]", r"\[4, 6, 1\]", "batch dimension"),
    ({"log_prob": ones(4, 7)}, "old_log_prob", r"\[B, T\] = \[4, 7\]", r"\[4, 6\]", "slice or expand"),
    ({"old_log_prob": ones(4, 1)}, "old_log_prob", r"\[B, T\] = \[4, 6\]", r"\[4, 1\]", "slice or expand"),
    ({"old_log_prob": ones(6)}, "old_log_prob", r"\[B, T\] = \[4, 6\]", r"\[6\]", "slice or expand"),
    (
        {"advantages": ones(6)},
        "advantages",
        r"\[B, T\] or \[B, 1\] or \[B\] with \[B, T\] = \[4, 6\]",
        r"\[6\]",
        "slice or expand",
    ),
    ({"advantages": ones(1, 6)}, "advantages", r"\[B, 1\] or \[B\]", r"\[1, 6\]", "slice or expand"),
    ({"advantages": ones(())}, "advantages", r"\[B, 1\] or \[B\]", r"\[\]", "slice or expand"),
    ({"advantages": ones(4, 6, 1)}, "advantages", r"\[B, 1\] or \[B\]", r"\[4, 6, 1\]", "slice or expand"),
    ({"response_mask": ones(4, 5)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4, 5\]", "slice or expand"),
    ({"response_mask": ones(4)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4\]", "slice or expand"),
    ({"response_mask": ones(4, 1)}, "response_mask", r"\[B, T\] = \[4, 6\]", r"\[4, 1\]", "slice or expand"),
    ({"rollout_is_weights": ones(5)}, "rollout_is_weights", r"\[B, 1\] or \[B\]", r"\[5\]", "slice or expand"),
    ({"rollout_is_weights": ones(6, 4)}, "rollout_is_weights", r"\[B, T\] = \[4, 6\]", r"\[6, 4\]", "slice or expand"),
]

INTEGER, COMPLEX = torch.int64, torch.complex64
DTYPES = [
    (
        {name: ones(4, 6, dtype=dtype)},
        name,
        "dtype in float32, float64, bfloat16, float16",
        f"torch.{str(dtype)[6:]}",
        rf"{name}\.to\(",
    )
    for name in ("log_prob", "old_log_prob", "advantages", "rollout_is_weights")
    for dtype in (INTEGER, torch.bool, COMPLEX)
]
DTYPES += [
    (
        {"response_mask": ones(4, 6, dtype=COMPLEX)},
        "response_mask",
        "dtype in float32.*bool.*int64",
        "torch.complex64",
        r"\.to\(",
    )
]

DEVICES = [
    (
        {name: ones(4, 6, device="meta")},
        name,
        r"device cpu \(that of log_prob\)",
        "meta",
        rf"{name}\.to\(log_prob\.device\)",
    )
    for name in ("old_log_prob", "advantages", "response_mask", "rollout_is_weights")
]
DEVICES += [
    ({"log_prob": ones(4, 6, device="meta")}, "old_log_prob", "device meta", "cpu", r"\.to\(log_prob\.device\)")
]


def explains(name, expected, got, remedy):
    got = re.escape(got) if not got.startswith("\\") else got
    return rf"maspo_ext: {name}: expected .*{expected}.*, got {got}\. .*{remedy}.*\.$"


def named(rows):
    return [pytest.param(*row, id=f"{row[1]}-{i}") for i, row in enumerate(rows)]


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(NUMBERS + AGGREGATION + SHAPES + DEVICES))
@pytest.mark.parametrize("requires_grad", [True, False])
def test_wrong_value(requires_grad, wrong, name, expected, got, remedy):
    batch = random_batch(4, 6, dtype=torch.float32)
    batch["log_prob"].requires_grad_(requires_grad)
    with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
        op(**{**batch, **wrong})


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(DTYPES))
def test_wrong_dtype(wrong, name, expected, got, remedy):
    with pytest.raises(TypeError, match=explains(name, expected, got, remedy)):
        op(**{**random_batch(4, 6, dtype=torch.float32), **wrong})


@pytest.mark.parametrize("wrong, name, expected, got, remedy", named(NUMBERS))
def test_config_rejects_what_the_op_rejects(wrong, name, expected, got, remedy):
    with pytest.raises(ValueError, match=explains(name, expected, got, remedy)):
        maspo_ext.MaspoConfig(**wrong)


@pytest.mark.parametrize("value", ["0.3", None, True, [0.3]], ids=repr)
@pytest.mark.parametrize("name", HYPER)
def test_config_rejects_what_is_no_number(name, value):
    got = re.escape(f"{value!r} ({type(value).__name__})")
    with pytest.raises(TypeError, match=rf"maspo_ext: {name}: expected a number, .*, got {got}\. "):
        maspo_ext.MaspoConfig(**{name: value})


@pytest.mark.parametrize("value", [1, None, "yes"], ids=repr)
def test_config_rejects_a_gate_gradient_that_is_no_bool(value):
    with pytest.raises(
        TypeError, match=rf"maspo_ext: gate_gradient: expected True or False, got {value!r}\. False is the published"
    ):
        maspo_ext.MaspoConfig(gate_gradient=value)


FRONTS = {
    "policy_loss": lambda **keywords: maspo_ext.policy_loss(**random_batch(4, 6), **keywords),
    "PolicyLoss": maspo_ext.PolicyLoss,
}
FRONT_ERRORS = [
    ({"ratio_mode": "ppo"}, ValueError, r"ratio_mode: expected one of maspo, got 'ppo'\. Choose"),
    ({"ratio_mode": None}, ValueError, r"ratio_mode: expected one of maspo, got None\. Choose"),
    ({"ratio_mode": ["maspo"]}, ValueError, r"ratio_mode: expected one of maspo, got \['maspo'\]\. Choose"),
    (
        {"alhpa": 0.3},
        TypeError,
        r"policy_loss: expected keywords of MaspoConfig \(sigma_base, alpha, .*\), got alhpa\. Check the spelling",
    ),
    (
        {"config": maspo_ext.MaspoConfig(), "alpha": 0.3},
        TypeError,
        r"policy_loss: expected either config or hyper-parameters as keywords, got both \(alpha\)\. Use dataclasses",
    ),
    (
        {"config": {"alpha": 0.3}},
        TypeError,
        r"config: expected a MaspoConfig for ratio_mode='maspo', got dict\. Pass the config class",
    ),
    ({"alpha": -1.0}, ValueError, r"alpha: expected >= 0, got -1\.0\. "),
    ({"sigma_high": INF}, ValueError, r"sigma_high: expected >= sigma_base = 1\.0 and finite, got inf\. "),
    ({"loss_agg_mode": "mean"}, ValueError, r"loss_agg_mode: expected one of token-mean, .*, got 'mean'\. Choose"),
]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("wrong, error, message", FRONT_ERRORS)
def test_fronts(front, wrong, error, message):
    with pytest.raises(error, match=f"maspo_ext: {message}"):
        FRONTS[front](**wrong)


@pytest.mark.parametrize(
    "wrong", [{"log_prob": [[0.0]]}, {"alpha": "0.3"}, {"dp_size": 1.5}, {"sigma_bse": 1.0}], ids=repr
)
def test_wrong_python_types_are_refused_by_the_schema_and_name_the_argument(wrong):
    with pytest.raises((RuntimeError, TypeError), match=next(iter(wrong))):
        op(**{**random_batch(4, 6), **wrong})


def test_a_missing_argument_is_named():
    batch = random_batch(4, 6)
    del batch["response_mask"]
    with pytest.raises((RuntimeError, TypeError), match="response_mask"):
        op(**batch)


@pytest.mark.parametrize(
    "wrong", [{"old_log_prob": ones(4, 5)}, {"advantages": ones(3)}, {"response_mask": ones(24)}], ids=str
)
def test_shapes_are_checked_below_the_validation_too(wrong):
    """loss_forward is public: a wrong shape must not read out of bounds."""
    with pytest.raises(RuntimeError, match=next(iter(wrong))):
        torch.ops.maspo.loss_forward(**{**random_batch(4, 6, dtype=torch.float32), **wrong})


def test_loss_backward_checks_what_it_gets():
    loss, _, dlogp, row_scale = torch.ops.maspo.loss_forward(**random_batch(4, 6, dtype=torch.float32))
    right = {"grad_loss": torch.ones_like(loss), "dlogp": dlogp, "row_scale": row_scale, "dtype": torch.float32}
    assert torch.ops.maspo.loss_backward(**right).shape == (4, 6)
    for wrong in (
        {"grad_loss": ones(2)},
        {"grad_loss": torch.ones((), dtype=torch.float64)},
        {"dlogp": dlogp.t()},
        {"dlogp": dlogp.double()},
        {"row_scale": row_scale[:3]},
        {"row_scale": row_scale.float()},
        {"dtype": torch.float64},
        {"dtype": torch.int64},
    ):
        with pytest.raises(RuntimeError, match="maspo: "):
            torch.ops.maspo.loss_backward(**{**right, **wrong})


# An editable install adds a finder that would lend the copy the library of the source tree.
IMPORT = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
import maspo_ext
"""


def import_from_copy(folder: Path, library: bytes | None, source_tree: bool) -> subprocess.CompletedProcess:
    """``import maspo_ext`` in another process, from a copy of the package whose library is missing or ``library``."""
    package = folder / "maspo_ext"
    copytree(Path(maspo_ext.__file__).parent, package, ignore=ignore_patterns("*.so", "__pycache__", "integrations"))
    if library is not None:
        (package / "_C.abi3.so").write_bytes(library)
    if source_tree:
        (folder / "csrc").mkdir()
    return subprocess.run([sys.executable, "-c", IMPORT], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "library, source_tree, cause, remedy",
    [
        (None, True, "No module named 'maspo_ext._C'", "pip install -e ."),
        (None, False, "No module named 'maspo_ext._C'", "pip install --force-reinstall --no-deps maspo_ext"),
        (b"no library", False, "_C.abi3.so", "pip install --force-reinstall --no-deps maspo_ext"),
    ],
)
def test_broken_extension(library, source_tree, cause, remedy, tmp_path):
    completed = import_from_copy(tmp_path, library, source_tree)
    assert completed.returncode != 0
    message = completed.stderr[completed.stderr.rindex("ImportError: maspo_ext: ") :]
    for part in (
        "maspo_ext._C cannot be loaded",
        "pid ",
        sys.executable,
        f"torch {torch.__version__}",
        "Cause: ",
        cause,
        "Remedy: ",
        remedy,
    ):
        assert part in message, part
