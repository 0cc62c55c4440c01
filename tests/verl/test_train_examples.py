"""The pieces of `make train` that need no Ray: data, tokenizer, model, reward, plot, summary, recipes."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from maspo_ext import RATIO_MODES, stat_names
from maspo_ext.integrations.verl.ratio_modes import FUSED

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINER = EXAMPLES / "maspo_trainer"
sys.path[:0] = [str(EXAMPLES / folder) for folder in ("data", "models", "reward", "maspo_trainer")]

import exact_match  # noqa: E402
import make_arithmetic  # noqa: E402
import make_tiny_qwen2  # noqa: E402
import metrics_file  # noqa: E402
import plot_metrics  # noqa: E402
import summarize_run  # noqa: E402
import watch_run  # noqa: E402
from byte_tokenizer import build_tokenizer  # noqa: E402

# ---- data


def test_splits_are_disjoint_and_complete():
    splits = make_arithmetic.make_splits(test_size=128, seed=0)
    questions = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in splits.items()}
    assert len(questions["test"]) == 128
    assert not questions["train"] & questions["test"]
    assert len(questions["train"] | questions["test"]) == len(make_arithmetic.OPERANDS) ** 2


def test_ground_truth_is_the_sum():
    for row in make_arithmetic.make_splits(test_size=128, seed=0)["test"]:
        a, b = row["prompt"][0]["content"].rstrip("=").split("+")
        assert row["reward_model"]["ground_truth"] == str(int(a) + int(b))


def test_impossible_test_size_names_the_argument():
    with pytest.raises(ValueError, match="test_size: expected 1 to"):
        make_arithmetic.make_splits(test_size=10**6, seed=0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, EXAMPLES / "data/make_arithmetic.py", "--out", folder], check=True)
    return folder


def test_verl_reads_the_parquet(data_dir):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = OmegaConf.create({"max_prompt_length": 32, "filter_overlong_prompts": True, "return_raw_chat": True})
    dataset = RLHFDataset(str(data_dir / "test.parquet"), build_tokenizer(), config)
    assert len(dataset) == 128  # no prompt is too long
    row = dataset[0]
    assert row["data_source"] == make_arithmetic.DATA_SOURCE
    assert row["reward_model"]["ground_truth"].isdigit()
    assert row["raw_prompt"][0]["role"] == "user"


# ---- tokenizer and model


@pytest.fixture(scope="module")
def saved_tokenizer(tmp_path_factory):
    """The tokenizer as verl gets it: saved beside a Qwen2 and loaded by AutoTokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    make_tiny_qwen2.build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["12+34=", "a user  and\n\ntabs\t", "héllo, 数学 🙂", "<b>", ""])
def test_tokenizer_round_trip(saved_tokenizer, text):
    ids = saved_tokenizer.encode(text, add_special_tokens=False)
    assert saved_tokenizer.decode(ids) == text
    assert ids == build_tokenizer().encode(text, add_special_tokens=False)


def test_every_byte_has_a_token(saved_tokenizer):
    assert len(saved_tokenizer) == 256 + 3 + 3
    assert len(saved_tokenizer.encode("\n", add_special_tokens=False)) == 1  # verl requires this of Qwen models


def test_chat_template_marks_the_turns(saved_tokenizer):
    text = saved_tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2="}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\n1+2=<|im_end|>\n<|im_start|>assistant\n"
    assert saved_tokenizer.eos_token == "<|im_end|>"


def test_labels_cover_the_answer_only():
    tokenizer = build_tokenizer()
    prompts = [tokenizer.encode("1+2="), tokenizer.encode("10+20=")]
    input_ids, labels = make_tiny_qwen2.encode_batch(prompts, [3, 30], tokenizer)
    for row, (prompt, answer) in enumerate(zip(prompts, ["3", "30"], strict=True)):
        kept = labels[row][labels[row] != make_tiny_qwen2.IGNORED_LABEL].tolist()
        assert kept == tokenizer.encode(answer) + [tokenizer.eos_token_id]
        assert (labels[row, : len(prompt)] == make_tiny_qwen2.IGNORED_LABEL).all()
        assert input_ids[row, : len(prompt)].tolist() == prompt


def test_teacher_is_right_as_often_as_told():
    rng = random.Random(0)
    answers = [make_tiny_qwen2.teacher_answer(50, 0.25, rng) for _ in range(4000)]
    assert answers.count(50) / 4000 == pytest.approx(0.25, abs=0.03)
    assert make_tiny_qwen2.teacher_answer(50, 1.0, rng) == 50


def test_expected_reward_is_the_mean_probability_of_the_right_answers():
    tokenizer = build_tokenizer()
    model = make_tiny_qwen2.build_model(tokenizer).eval()
    prompts, truths = [tokenizer.encode("1+2="), tokenizer.encode("10+20=")], [3, 30]
    total = 0.0
    for prompt, truth in zip(prompts, truths, strict=True):
        answer = tokenizer.encode(str(truth)) + [tokenizer.eos_token_id]
        with torch.no_grad():
            probability = model(torch.tensor([prompt + answer])).logits[0].softmax(-1)
        total += math.prod(probability[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
    assert make_tiny_qwen2.expected_reward(model, prompts, truths, tokenizer) == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("rewards, unreliable", [([0.2], 0), ([0.9, 0.5, 0.26, 0.25], 3)])
def test_the_warm_start_ends_with_the_reward_it_is_to_leave(monkeypatch, data_dir, rewards, unreliable):
    shares = warm_start_with(monkeypatch, data_dir, iter(rewards), steps=2)
    assert shares == [1.0] * 2 + [make_tiny_qwen2.CORRECT_SHARE] * unreliable


def test_a_warm_start_that_stays_reliable_is_an_error(monkeypatch, data_dir):
    monkeypatch.setattr(make_tiny_qwen2, "MOST_UNRELIABLE_STEPS", 3)
    with pytest.raises(SystemExit, match=r"at most 0.25 after 3 steps .* got 0.900. Try another --seed"):
        warm_start_with(monkeypatch, data_dir, itertools.repeat(0.9), steps=1)


def warm_start_with(monkeypatch, data_dir, rewards, steps):
    """The teacher's share of right answers in each step, where ``rewards`` are measured."""
    shares = []

    def noted(truth, correct_share, rng):
        shares.append(correct_share)
        return truth

    monkeypatch.setattr(make_tiny_qwen2, "teacher_answer", noted)
    monkeypatch.setattr(make_tiny_qwen2, "expected_reward", lambda *_: next(rewards))
    tokenizer = build_tokenizer()
    data = pd.read_parquet(data_dir / "train.parquet")
    make_tiny_qwen2.warm_start(make_tiny_qwen2.build_model(tokenizer), tokenizer, data, steps, batch_size=1, lr=1e-3, seed=0)
    return shares


# ---- reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [("82", 1.0), (" 82\n", 1.0), ("83", 0.0), ("082", 0.0), ("82.", 0.0), ("= 82", 0.0), ("8", 0.0), ("", 0.0)],
)
def test_reward_is_exact_match(response, reward):
    assert exact_match.compute_score("maspo/arithmetic", response, "82", extra_info={}) == reward


def test_data_source_is_the_one_of_the_data():
    assert exact_match.ARITHMETIC == make_arithmetic.DATA_SOURCE == summarize_run.ARITHMETIC


def test_gsm8k_gets_verls_reward():
    assert exact_match.compute_score("openai/gsm8k", "so it is\n#### 72", "72") == 1.0
    assert exact_match.compute_score("openai/gsm8k", "72", "72") == 0.0  # verl wants the marker


# ---- metrics, plot, summary

HELD_OUT = "val-core/maspo/arithmetic/acc/mean@1"


OF_VERL = {"actor/pg_clipfrac": 0.1, "actor/pg_clipfrac_lower": 0.0}
OF_RATIO = {"actor/ratio_min": 0.5, "actor/ratio_mean": 1.0, "actor/ratio_max": 2.0}
OF_MASPO = {"actor/maspo_gate_mean_pos": 0.9, "actor/maspo_gate_mean_neg": 0.95}


def write_metrics(path, held_out=(0.25, 0.9), of_loss=OF_VERL | OF_RATIO | OF_MASPO):
    records = [{"step": 0, "data": {HELD_OUT: held_out[0]}}]
    for step in range(1, 6):
        data = {"critic/score/mean": 0.15 * step, "actor/ppo_kl": 0.01 / step, **of_loss}
        records.append({"step": step, "data": data})
    records[-1]["data"][HELD_OUT] = held_out[1]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_series_skips_steps_without_the_metric(tmp_path):
    metrics = metrics_file.read_metrics(write_metrics(tmp_path / "m.jsonl"))
    assert metrics_file.series(metrics, HELD_OUT) == ([0, 5], [0.25, 0.9])
    assert metrics_file.held_out_reward_names(metrics) == [HELD_OUT]


@pytest.mark.parametrize(
    ("of_loss", "of_method", "lines"),
    [
        (OF_VERL | OF_RATIO | OF_MASPO, "MASPO", [2, 2, 3, 1]),
        (OF_VERL | OF_RATIO | {"actor/sapo_gate_mean_pos": 0.9}, "SAPO", [2, 1, 3, 1]),
        (OF_VERL | OF_RATIO | {"actor/dac_clip_low_mean": 0.6, "actor/dac_clip_high_mean": 1.9}, "DAC", [2, 2, 3, 1]),
        (OF_VERL | OF_RATIO | {"actor/bapo_clip_low": 0.6, "actor/bapo_clip_high": 1.9}, "BAPO", [2, 2, 3, 1]),
        (OF_VERL | OF_RATIO, "Clipped tokens", [2, 2, 3, 1]),
        (OF_VERL, "Clipped tokens", [2, 2, 1]),
        ({}, "KL", [2, 1]),
    ],
)
def test_plot_draws_what_was_logged(tmp_path, of_loss, of_method, lines):
    metrics = metrics_file.read_metrics(write_metrics(tmp_path / "m.jsonl", of_loss=of_loss))
    figure = plot_metrics.plot(metrics, "test")
    assert [len(axis.lines) for axis in figure.axes] == lines
    assert of_method in figure.axes[1].get_title()


@pytest.mark.parametrize("ratio_mode", FUSED)
def test_every_mode_logs_what_a_panel_draws(ratio_mode):
    logged = {name for name in stat_names(ratio_mode) if name is not None}
    panels = [{name for name, _ in panel.lines} for panel in plot_metrics.OF_METHOD]
    first = next(names for names in panels if names & logged)
    assert first <= logged
    if stat_names(ratio_mode)[3] is not None:  # the mode has statistics of its own
        assert first & set(RATIO_MODES[ratio_mode].stat_names)
    assert {name for name, _ in plot_metrics.RATIO.lines + plot_metrics.KL.lines} <= logged


def test_plot_command_writes_a_png(tmp_path):
    write_metrics(tmp_path / "m.jsonl")
    command = [sys.executable, TRAINER / "plot_metrics.py", tmp_path / "m.jsonl", "--out", tmp_path / "m.png"]
    subprocess.run(command, check=True)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def run_summary(path):
    command = [sys.executable, TRAINER / "summarize_run.py", path, "--seconds", "123.4"]
    return subprocess.run(command, capture_output=True, text=True)


def test_summary_of_a_good_run(tmp_path):
    result = run_summary(write_metrics(tmp_path / "m.jsonl"))
    assert result.returncode == 0, result.stderr
    assert "0.250 -> 0.900" in result.stdout
    assert "123 s" in result.stdout


@pytest.mark.parametrize(
    ("held_out", "message"), [((0.25, 0.79), "ended at 0.790"), ((0.36, 0.9), "the warm start already has 0.360")]
)
def test_summary_fails_if_the_goal_is_missed(tmp_path, held_out, message):
    result = run_summary(write_metrics(tmp_path / "m.jsonl", held_out=held_out))
    assert result.returncode == 1
    assert message in result.stderr


def test_summary_says_whether_there_is_a_goal(tmp_path):
    assert "goal:       reached" in run_summary(write_metrics(tmp_path / "m.jsonl")).stdout
    other = write_metrics(tmp_path / "other.jsonl")
    other.write_text(other.read_text().replace("maspo/arithmetic", "openai/gsm8k"))
    result = run_summary(other)
    assert result.returncode == 0 and "goal" not in result.stdout


def test_summary_only_reports_other_data():
    assert summarize_run.missed_goal("val-core/openai/gsm8k/acc/mean@1", 0.9, 0.1) is None


def test_missing_metrics_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="VERL_FILE_LOGGER_PATH"):
        metrics_file.read_metrics(tmp_path / "none.jsonl")


# ---- one line per step


def watch(tmp_path, code):
    paths = {"--log": tmp_path / "console.log", "--metrics": tmp_path / "m.jsonl"}
    options = [word for pair in paths.items() for word in pair]
    command = [sys.executable, TRAINER / "watch_run.py", *options, "--", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_line_per_step_while_the_output_goes_into_a_file(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 7, "data": {}}\n')  # of a run before
    write_metrics(tmp_path / "new.jsonl")
    result = watch(tmp_path, f"import os; print('noise'); os.rename({str(tmp_path / 'new.jsonl')!r}, {str(tmp_path / 'm.jsonl')!r})")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 6 and lines[0] == "step   0: held-out 0.250"
    assert lines[5] == "step   5: held-out 0.900, reward 0.750"
    assert (tmp_path / "console.log").read_text() == "noise\n"


def test_a_step_s_loss_and_time():
    data = {"critic/score/mean": 0.5, "actor/loss": -0.01234, "timing_s/step": 9.87}
    assert watch_run.line_of(12, data) == "step  12: reward 0.500, loss -0.0123, 9.9 s"
    assert watch_run.line_of(12, {"actor/loss": None}) == "step  12: "


def test_half_a_line_waits_for_the_rest(tmp_path):
    path = tmp_path / "m.jsonl"
    new_records = watch_run.NewRecords(path)
    assert new_records() == []
    path.write_text('{"step": 1, "data": {}}\n{"step": 2, "da')
    assert new_records() == [(1, {})]
    path.write_text('{"step": 1, "data": {}}\n{"step": 2, "data": {}}\n')
    assert new_records() == [(2, {})]


def test_a_failure_shows_the_end_of_the_output_and_keeps_the_status(tmp_path):
    result = watch(tmp_path, "[print('line', i) for i in range(100)]; raise SystemExit(7)")
    assert result.returncode == 7
    assert "line 99" in result.stderr and "line 9\n" not in result.stderr
    assert f"status 7. These are its last lines; all: {tmp_path / 'console.log'}" in result.stderr


# ---- the GPU recipes


@pytest.mark.parametrize(("size", "alpha"), [("7b", 0.3), ("1.5b", 0.5)])
def test_gpu_recipe_composes_under_stock_verl(size, alpha, tmp_path, monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.delenv("RATIO_MODE", raising=False)
    script = TRAINER / f"run_deepseek-r1-distill-qwen-{size}.sh"
    # Hydra's own dry run: any key that verl's config does not have is an error.
    result = subprocess.run(["bash", script, "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = OmegaConf.create(result.stdout[result.stdout.index("actor_rollout_ref:") :])
    ratio_clip = config.actor_rollout_ref.actor.policy_loss.ratio_clip
    assert ratio_clip.ratio_mode == "maspo"
    assert ratio_clip.maspo_alpha == alpha
    assert ratio_clip.maspo_sigma_base == 1.0
    assert config.algorithm.adv_estimator == "grpo"
    assert config.actor_rollout_ref.rollout.n == 5
    assert config.actor_rollout_ref.actor.optim.lr == 4.63e-7
    assert (config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size) == (1024, 256)
    assert list(config.trainer.logger) == ["console", "wandb"]
