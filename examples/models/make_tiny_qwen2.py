"""Make a tiny Qwen2 and warm-start it with supervised training, all on the spot.

A random model would never hit an exact answer, so it first imitates a teacher on the *train* prompts for some seconds.
At first the teacher adds correctly: the model learns the format and how to add. Then the teacher becomes unreliable (right
one time in twenty, otherwise off by one or two), and the model picks up that habit until it would answer one prompt in
four correctly. That is measured after every step, since another processor's rounding leads to another model.
Reinforcement learning has to undo the habit, from the reward alone.

    python examples/models/make_tiny_qwen2.py --data outputs/train/data/train.parquet --out outputs/train/model
"""

import argparse
import random
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from byte_tokenizer import build_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import maspo_ext

CORRECT_SHARE = 0.05  # of the unreliable teacher's answers
WRONG_OFFSETS = (-2, -1, 1, 2)
# Quickly, since a habit of many steps takes as many to undo: until the reward is at most this, up to some twenty steps as a rule.
UNRELIABLE_LR = 5e-4
START_REWARD = 0.25
MOST_UNRELIABLE_STEPS = 100
IGNORED_LABEL = -100


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 of about 0.15 million parameters, random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def teacher_answer(truth: int, correct_share: float, rng: random.Random) -> int:
    """The right answer with probability ``correct_share``, else one that is off by a little."""
    return truth if rng.random() < correct_share else abs(truth + rng.choice(WRONG_OFFSETS))


def encode_batch(prompts, answers, tokenizer):
    """Right-padded prompts with their answers; only the answers' tokens carry a label."""
    answers = [tokenizer.encode(str(answer), add_special_tokens=False) + [tokenizer.eos_token_id] for answer in answers]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full((len(prompts), width), IGNORED_LABEL)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return input_ids, labels


def expected_reward(model, prompts, truths, tokenizer) -> float:
    """The share of right answers among samples at temperature 1, without any: the mean probability of the right answer."""
    input_ids, labels = encode_batch(prompts, truths, tokenizer)
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits[:, :-1]
    log_prob = maspo_ext.logprob(logits, labels[:, 1:], ignore_index=IGNORED_LABEL).log_prob
    return log_prob.sum(1).exp().mean().item()


def imitate(model, optimizer, prompts, answers, tokenizer) -> float:
    """One supervised step; returns its loss, nats per token."""
    input_ids, labels = encode_batch(prompts, answers, tokenizer)
    # Right padding under a causal mask: no real token sees it, so no attention mask is needed.
    loss = model(input_ids=input_ids, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def warm_start(model, tokenizer, data: pd.DataFrame, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Supervised training on a teacher's answers: ``steps`` while it is reliable, then until the model is not, either.

    Exits with an error if the model stays reliable.
    """
    prompts = [
        tokenizer.apply_chat_template(list(p), add_generation_prompt=True, return_dict=False) for p in data["prompt"]
    ]
    truths = [int(reward_model["ground_truth"]) for reward_model in data["reward_model"]]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    model.train()
    start = time.monotonic()

    def step(correct_share: float) -> float:
        rows = rng.sample(range(len(prompts)), min(batch_size, len(prompts)))
        answers = [teacher_answer(truths[i], correct_share, rng) for i in rows]
        return imitate(model, optimizer, [prompts[i] for i in rows], answers, tokenizer)

    for number in range(1, steps + 1):
        loss = step(correct_share=1.0)
        schedule.step()
        if number % 100 == 0 or number == steps:
            print(f"warm start: step {number}/{steps}, loss {loss:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    reward = expected_reward(model, prompts, truths, tokenizer)
    print(f"warm start: expected reward on the train prompts {reward:.3f}; now the teacher is unreliable on purpose, right {CORRECT_SHARE:.0%} of the time", flush=True)  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = UNRELIABLE_LR
    number = 0
    while reward > START_REWARD:
        if number == MOST_UNRELIABLE_STEPS:
            sys.exit(f"warm start: expected a reward of at most {START_REWARD} after {number} steps with the unreliable teacher, got {reward:.3f}. Try another --seed.")  # fmt: skip
        step(CORRECT_SHARE)
        number += 1
        reward = expected_reward(model, prompts, truths, tokenizer)
    print(f"warm start: {number} steps later the expected reward is {reward:.3f}, {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="train.parquet of make_arithmetic.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=600, help="supervised steps with the reliable teacher; 0 leaves the weights random")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    if args.steps:
        warm_start(model, tokenizer, pd.read_parquet(args.data), args.steps, args.batch_size, args.lr, args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: Qwen2 with {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
