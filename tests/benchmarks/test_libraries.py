"""The losses of other libraries that benchmarks/loss.py measures compute the same as ours."""

import sys
from pathlib import Path

import pytest
import torch

import maspo_ext

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)

import extras  # noqa: E402
import libraries  # noqa: E402

RTOL = 1e-12
RTOL_OF = {("TRL", "sapo"): 2e-7}  # it has the temperatures in float32, whatever the log-probabilities' dtype
MODES = {"verl": ["ppo", "sapo"], "Liger": ["ppo", "clip_higher", "sapo"], "TRL": ["ppo", "clip_higher", "sapo"]}


@pytest.fixture(scope="module")
def functions():
    """Of a library, or why it is not there."""
    loaded, missing = libraries.load_libraries()

    def of(library: str):
        if library in missing:
            pytest.skip(f"{library}: {missing[library]}")
        return loaded[library]

    return of


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """In float64, with ratios from e^-8 to e^8 or so."""
    torch.manual_seed(5)
    old = -3 * torch.rand(7, 301, dtype=torch.float64)
    mask = torch.rand(old.shape) >= 0.3
    mask[:, 0] = True  # a row without tokens counts in Liger's and TRL's sapo, and not in ours
    return {
        "log_prob": old + 2.0 * torch.randn_like(old),
        "old_log_prob": old,
        "advantages": torch.randn(len(old), 1, dtype=old.dtype).expand(old.shape).contiguous(),
        "response_mask": mask,
    }


def loss_and_gradient(function, batch) -> tuple[torch.Tensor, torch.Tensor]:
    log_prob = batch["log_prob"].clone().requires_grad_()
    loss = function(**batch | {"log_prob": log_prob})[0]
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0]


@pytest.mark.parametrize(("library", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes])
def test_library_computes_our_loss_and_gradient(library, mode, functions, batch):
    theirs = loss_and_gradient(functions(library)[mode], batch)
    ours = loss_and_gradient(lambda **tensors: maspo_ext.policy_loss(**tensors, ratio_mode=mode), batch)
    rtol = RTOL_OF.get((library, mode), RTOL)
    for value, expected in zip(theirs, ours, strict=True):
        torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("library", MODES)
def test_these_are_all_its_modes(library, functions):
    assert list(functions(library)) == MODES[library]


def test_the_batch_reaches_every_bound(batch):
    """So that a bound of another library that is not ours is seen."""
    mask, adv = batch["response_mask"], batch["advantages"]
    ratio = (batch["log_prob"] - batch["old_log_prob"]).exp()
    steps = [0.0, 0.8, 1.2, 1.28, 3.0, 10.0, torch.inf]
    for sign in (adv > 0, adv < 0):
        for low, high in zip(steps, steps[1:], strict=False):
            assert (mask & sign & (ratio > low) & (ratio < high)).sum() >= 3, (low, high)
    assert (~mask).any()


class TestExtra:
    @pytest.fixture
    def extra(self, tmp_path, monkeypatch):
        """An installed package with a module that it imports late."""
        package = tmp_path / "build" / "some" / "some_extra"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("def answer():\n    return 42\n")
        monkeypatch.setattr(extras, "ROOT", tmp_path)
        return extras.Extra("some_extra", "build/some", "some-extra==1.0")

    def test_it_is_found_within_and_leaves_no_trace(self, extra):
        path = list(sys.path)
        with extra.importable():
            from some_extra import answer
        assert answer() == 42
        assert sys.path == path and "some_extra" not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            import some_extra  # noqa: F401

    def test_what_was_imported_before_stays(self, extra, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path / "build" / "some")
        import some_extra

        with extra.importable():
            import some_extra as again
        assert again is some_extra is sys.modules.pop("some_extra")


def test_what_is_not_there_is_left_out_in_one_line_with_the_remedy(monkeypatch, capsys):
    def missing():
        with extras.Extra("no_such_module", "build/none", "none==1").importable():
            import no_such_module  # noqa: F401

    monkeypatch.setattr(libraries, "LIBRARIES", {"TRL": missing})
    assert libraries.library_functions() == {}
    assert capsys.readouterr().out == (
        "left out: TRL: No module named 'no_such_module'. "
        "To have it: pip install --no-deps --target build/trl trl==1.16.0\n"
    )
