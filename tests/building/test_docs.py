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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_blocks(path, capsys):
    torch.manual_seed(0)
    names = {"model": Model(), "input_ids": torch.randint(97, (8, 513))}
    for block in BLOCK.findall(path.read_text()):
        code = compile(block, path.name, "exec")
        if NOT_RUN not in block:
            exec(code, names)
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
