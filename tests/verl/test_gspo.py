"""What docs/training.md says of GSPO is verl's ``loss_mode=gspo``."""

import re
from pathlib import Path

import pytest
import torch
import verl  # noqa: F401  loads the plugin
from verl.trainer.ppo.core_algos import compute_policy_loss_gspo
from verl.workers.config import ActorConfig

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def guide():
    """The names that the guide's blocks leave."""
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, GUIDE.name, "exec"), names)
    return names


@pytest.mark.parametrize("spread", [2e-3, 0.5])
def test_the_recipe_is_verls_gspo(guide, spread):
    """With ratios around the bounds, and far off them; float64, in which the ratio's rounding is not seen."""
    draw = torch.Generator().manual_seed(0)
    old_log_prob = -3 * torch.rand(6, 9, generator=draw, dtype=torch.float64)
    noise = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    advantages = torch.tensor([[-1.5], [-0.5], [-1.0], [0.7], [0.0], [2.0]], dtype=torch.float64).expand(6, 9)
    response_mask = torch.arange(9) < torch.tensor([9, 1, 4, 0, 7, 5])[:, None]
    old_log_prob[~response_mask] = 100.0  # padding is whatever it is, but finite: verl multiplies by the mask
    ours = (old_log_prob + spread * noise).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=3e-4, clip_ratio_high=4e-4
    )

    old_for_gspo = guide["old_log_prob_for_gspo"](ours, old_log_prob, response_mask)
    loss, stats = guide["gspo"](ours, old_for_gspo, advantages, response_mask)
    expected, metrics = compute_policy_loss_gspo(
        old_log_prob, theirs, advantages, response_mask, loss_agg_mode="seq-mean-token-mean", config=config
    )
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (theirs.grad != 0).any()
    assert stats.to_dict()["actor/pg_clipfrac"] == pytest.approx(metrics["actor/pg_clipfrac"]) != 0
