"""The Python in README and docs runs as it stands, block after block of a file; and what lists the modes lists all of them."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from maspo_ext import RATIO_MODES

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "GRPOConfig(...)"  # a block of TRL's: tests/trl runs the whole example


class Model(torch.nn.Module):
    """What the blocks take of a model of transformers."""

    def __init__(self, words: int = 97, size: int = 8) -> None:
        super().__init__()
        self.embed, self.lm_head = torch.nn.Embedding(words, size), torch.nn.Linear(size, words, bias=False)

    def model(self, input_ids):
        return SimpleNamespace(last_hidden_state=self.embed(input_ids))


FILES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if BLOCK.search(path.read_text())]


def run_blocks(path):
    """The names that the blocks of a file leave."""
    torch.manual_seed(0)
    names = {"model": Model(), "input_ids": torch.randint(97, (8, 513))}
    for block in BLOCK.findall(path.read_text()):
        code = compile(block, path.name, "exec")
        if NOT_RUN not in block:
            exec(code, names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_blocks(path, capsys):
    names = run_blocks(path)
    assert "actor/maspo_gate_mean_pos" in capsys.readouterr().out
    assert names["loss"].isfinite()


# Where each file lists the modes: from these words to an empty line, or for two lines; of a table the first column.
LISTS = {
    "README.md": r"\| `ratio_mode` \|(.*?)\n\n",
    "docs/training.md": r"\| beyond the bound \|(.*?)\n\n",
    "Makefile": r"RATIO_MODE=MODE (.*?\n.*?)\n",
    "examples/maspo_trainer/maspo_grpo.sh": r"#   RATIO_MODE (.*?\n.*?)\n",
    "maspo_ext/functional.py": r"ratio_mode: the method(.*?\n.*?)\n",
}


@pytest.mark.parametrize("path", LISTS)
def test_every_mode_is_listed(path):
    (listed,) = re.findall(LISTS[path], (ROOT / path).read_text(), re.DOTALL)
    names = {name for line in listed.splitlines() for name in re.findall(r"\w+", line.split(" | ")[0])}
    assert names >= set(RATIO_MODES), f"{path} lists no {', '.join(set(RATIO_MODES) - names)}"


def test_these_files_have_blocks():
    assert {"README.md", "training.md"} <= {path.name for path in FILES}


def test_the_loop_of_the_guide_adds_up():
    """Its micro-batches have the gradient of their mini-batch; with the count left out they would not."""
    block = BLOCK.findall((ROOT / "docs" / "training.md").read_text())[0]
    whole = block.replace("mini.split(2)", "mini.split(4)")
    assert whole != block
    results = []
    for code in (block, whole):
        torch.manual_seed(0)
        names = {}
        exec(compile(code, "training.md", "exec"), names)
        results.append(names["head"].weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spread", [2e-3, 0.5])
def test_the_recipe_for_gspo_is_verls(spread):
    """Its ``loss_mode=gspo``, with ratios around the bounds, and far off them; float64, in which the ratio's rounding is not seen."""
    import verl  # noqa: F401  loads the plugin
    from verl.trainer.ppo.core_algos import compute_policy_loss_gspo
    from verl.workers.config import ActorConfig

    guide = run_blocks(ROOT / "docs" / "training.md")
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
