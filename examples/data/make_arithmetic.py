"""Make an arithmetic task in verl's parquet schema: train and held-out prompts, answers checked by exact match.

The problems are sums of two-digit numbers, ``a+b`` with operands from 10 to 39, so that every sum has two digits too.
Each goes to exactly one of the two files: the prompts of ``test.parquet`` are never seen in training.

    python examples/data/make_arithmetic.py --out outputs/train/data
"""

import argparse
import random
from pathlib import Path

import pandas as pd

DATA_SOURCE = "maspo/arithmetic"
OPERANDS = range(10, 40)


def make_row(a: int, b: int, split: str, index: int) -> dict:
    """One prompt in the schema of ``verl.utils.dataset.RLHFDataset``."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": f"{a}+{b}="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"split": split, "index": index},
    }


def make_splits(test_size: int, seed: int) -> dict[str, list[dict]]:
    """All problems in random order, the first ``test_size`` of them held out."""
    problems = [(a, b) for a in OPERANDS for b in OPERANDS]
    if not 0 < test_size < len(problems):
        raise ValueError(
            f"test_size: expected 1 to {len(problems) - 1} (there are {len(problems)} problems), got {test_size}; "
            "choose another --test-size."
        )
    random.Random(seed).shuffle(problems)
    parts = {"test": problems[:test_size], "train": problems[test_size:]}
    return {
        split: [make_row(a, b, split, index) for index, (a, b) in enumerate(part)] for split, part in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet and test.parquet")
    parser.add_argument("--test-size", type=int, default=128, help="number of held-out problems")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for split, rows in make_splits(args.test_size, args.seed).items():
        path = args.out / f"{split}.parquet"
        pd.DataFrame(rows).to_parquet(path)
        print(f"{path}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
