"""The scalars of a call are checked once and kept: what is refused must not hide behind what was taken."""

import copy

import pytest
import torch

import maspo_ext
from maspo_ext import functional
from maspo_ext.scalars import settings_of

B, T = 2, 3


def call(**keywords):
    log_prob = torch.full((B, T), -1.0)
    return maspo_ext.policy_loss(log_prob, log_prob - 0.1, torch.ones(B, 1), torch.ones(B, T), **keywords)


@pytest.mark.parametrize("name, good", [("dp_size", 1), ("batch_num_tokens", 1), ("kl_coef", 0), ("entropy_alpha", 0)])
def test_a_bool_is_refused_after_the_number_that_it_equals(name, good):
    needed = {"ref_log_prob": torch.zeros(B, T), "entropy": torch.zeros(B, T)}
    call(**needed, **{name: good})
    if name != "entropy_alpha":  # whose default it is, which nobody looks at
        with pytest.raises(TypeError, match=name):
            call(**needed, **{name: bool(good)})
    with pytest.raises(TypeError, match=name):
        call(**needed, **{name: True})


def test_a_bool_among_the_hyper_parameters_is_refused_after_the_number_that_it_equals():
    """By the twin; for the op the dispatcher makes a float of it."""
    log_prob = torch.full((B, T), -1.0)
    batch = (log_prob, log_prob - 0.1, torch.ones(B, T), torch.ones(B, T))
    for mode, good, wrong in (
        ("maspo", {"sigma_high": 1.0}, {"sigma_high": True}),
        ("dac", {"hyper": [1.0, 0.3, 10.0]}, {"hyper": [True, 0.3, 10.0]}),
    ):
        maspo_ext.reference.loss(*batch, ratio_mode=mode, **good)
        with pytest.raises(TypeError, match="sigma_high|eps_low"):
            maspo_ext.reference.loss(*batch, ratio_mode=mode, **wrong)


@pytest.mark.parametrize("value", [[1], {}, torch.ones(3, requires_grad=True)])
def test_what_cannot_be_looked_up_is_refused_by_the_checks(value):
    with pytest.raises(TypeError, match="maspo_ext: dp_size: expected a whole number >= 1, got") as raised:
        call(dp_size=value)
    assert raised.value.__context__ is None, "the user sees the check's error alone"


def test_a_call_is_not_changed_by_the_one_before():
    first = call(batch_num_tokens=3, loss_agg_mode="token-mean").loss
    assert call(batch_num_tokens=6).loss == first / 2
    assert call(batch_num_tokens=3, kl_coef=0.5, ref_log_prob=torch.zeros(B, T)).loss != first
    assert call(batch_num_tokens=3, rollout_is_weights=torch.full((B, 1), 3.0), rollout_is_threshold=2.0).loss == 2 * first
    assert call(batch_num_tokens=3).loss == first


def test_kept_settings_stay_as_they_are_whatever_the_count(monkeypatch):
    seen = []

    def spied(*call, **hyper):
        settings = settings_of(*call, **hyper)
        seen.append((settings, copy.deepcopy(settings)))
        return settings

    monkeypatch.setattr(functional, "settings_of", spied)
    log_prob = torch.full((B, T), -1.0, requires_grad=True)
    for count in (7, 8):
        maspo_ext.policy_loss(
            log_prob, log_prob.detach(), torch.ones(B), torch.ones(B, T), entropy=torch.ones(B, T), entropy_alpha=0.25,
            ref_log_prob=torch.zeros(B, T), kl_type="kl+", kl_coef=0.5, batch_num_tokens=count, alpha=0.5,
        ).loss.backward()  # fmt: skip
    (first, before), (second, _) = seen
    assert first is second and first == before


def test_a_bool_among_kept_hyper_parameters_is_refused_after_the_number_that_it_equals():
    call(alpha=1)
    with pytest.raises(TypeError, match="alpha"):
        call(alpha=True)
