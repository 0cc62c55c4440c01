"""The CPU rollout: batching must change neither the distribution sampled from nor the log-probs reported."""

import asyncio
import threading

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from maspo_ext.integrations.verl.cpu import generation
from maspo_ext.integrations.verl.cpu.generation import SamplingParams, generate_batch
from maspo_ext.integrations.verl.cpu.request_batcher import RequestBatcher

EOS, PAD = 1, 0
PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9, 10], [5, 6, 7]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = Qwen2ForCausalLM(config).eval()
    # Random weights give a nearly flat distribution, with which a wrong position or mask would hardly show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def generate(model, prompts, **kwargs):
    params = SamplingParams(**{"max_new_tokens": 12, "logprobs": True, **kwargs})
    return generate_batch(model, prompts, params, eos_token_ids=[EOS], pad_token_id=PAD)


@torch.no_grad()
def plain_log_probs(model, prompt, response, temperature=1.0):
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_those_of_a_plain_forward(model, temperature):
    torch.manual_seed(1)
    responses = generate(model, PROMPTS, temperature=temperature)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        expected = plain_log_probs(model, prompt, response.token_ids, temperature)
        torch.testing.assert_close(torch.tensor(response.log_probs), expected, rtol=1e-4, atol=1e-5)


def test_greedy_response_does_not_depend_on_the_batch(model):
    together = generate(model, PROMPTS, temperature=0)
    alone = [generate(model, [prompt], temperature=0)[0] for prompt in PROMPTS]
    assert [response.token_ids for response in together] == [response.token_ids for response in alone]


def test_sampling_follows_the_model(model):
    torch.manual_seed(2)
    tokens = torch.tensor([r.token_ids[0] for r in generate(model, [[5, 6, 7]] * 4000, max_new_tokens=1)])
    with torch.no_grad():
        probabilities = torch.softmax(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1], dim=-1)
    frequencies = torch.bincount(tokens, minlength=32) / len(tokens)
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=0.03)


def test_top_k_log_probs_are_those_of_the_truncated_distribution(model):
    torch.manual_seed(3)
    for response in generate(model, PROMPTS, top_k=1):
        assert response.log_probs == pytest.approx([0.0] * len(response.token_ids), abs=1e-6)


def test_response_ends_with_its_first_end_token(model):
    torch.manual_seed(4)
    responses = generate(model, [[5, 6, 7]] * 200)
    ended = [r for r in responses if EOS in r.token_ids]
    assert ended, "no response ended early: the test shows nothing"
    for response in responses:
        assert EOS not in response.token_ids[:-1]
        assert len(response.log_probs) == len(response.token_ids) <= 12
    assert all(len(r.token_ids) == 12 for r in responses if EOS not in r.token_ids)


def test_no_end_token_generates_to_the_limit(model):
    params = SamplingParams(max_new_tokens=7)
    responses = generate_batch(model, PROMPTS, params, eos_token_ids=[], pad_token_id=PAD)
    assert [len(r.token_ids) for r in responses] == [7] * len(PROMPTS)
    assert all(r.log_probs is None for r in responses)


def test_memory_limit_splits_the_batch(model, monkeypatch):
    whole = generate(model, PROMPTS, temperature=0)
    monkeypatch.setattr(generation, "MAX_SCORE_BYTES", 1)  # one row at a time
    assert [r.token_ids for r in generate(model, PROMPTS, temperature=0)] == [r.token_ids for r in whole]


def test_request_is_bounded_by_the_response_length():
    request = {"temperature": 0.5, "top_k": -1, "top_p": 1, "repetition_penalty": 1.0, "logprobs": True}
    assert SamplingParams.from_request(request, 16).max_new_tokens == 16
    assert SamplingParams.from_request({**request, "max_tokens": 4}, 16).max_new_tokens == 4
    assert SamplingParams.from_request({**request, "max_tokens": 99}, 16).max_new_tokens == 16


def test_unknown_sampling_parameter_is_refused():
    with pytest.raises(ValueError, match="does not know \\['min_p'\\]"):
        SamplingParams.from_request({"min_p": 0.1}, 16)


# ---- batching


def test_concurrent_requests_share_a_batch_and_get_their_own_result():
    batches = []

    def run_batch(key, items):
        batches.append((key, list(items)))
        return [key * item for item in items]

    async def main():
        batcher = RequestBatcher(run_batch, max_batch_size=100)
        return await asyncio.gather(*[batcher.submit(key, item) for item in range(10) for key in (2, 3)])

    results = asyncio.run(main())
    assert results == [key * item for item in range(10) for key in (2, 3)]
    assert sorted(key for key, _ in batches) == [2, 3]  # one batch per key


def test_batch_size_is_limited():
    sizes = []

    def run_batch(key, items):
        sizes.append(len(items))
        return items

    async def main():
        batcher = RequestBatcher(run_batch, max_batch_size=4)
        return await asyncio.gather(*[batcher.submit("k", item) for item in range(10)])

    assert asyncio.run(main()) == list(range(10))
    assert sizes == [4, 4, 2]


def test_a_failed_batch_fails_its_requests_and_no_others():
    def run_batch(key, items):
        if key == "bad":
            raise ValueError("boom")
        return items

    async def main():
        batcher = RequestBatcher(run_batch, max_batch_size=10)
        return await asyncio.gather(batcher.submit("bad", 1), batcher.submit("good", 2), return_exceptions=True)

    bad, good = asyncio.run(main())
    assert isinstance(bad, ValueError)
    assert good == 2


def test_pause_waits_for_the_running_batch_and_holds_the_rest():
    started, finish = threading.Event(), threading.Event()

    def run_batch(key, items):
        started.set()
        assert finish.wait(10)
        return items

    async def main():
        batcher = RequestBatcher(run_batch, max_batch_size=1)
        first = asyncio.create_task(batcher.submit("k", 1))
        await asyncio.to_thread(started.wait, 10)
        held = asyncio.create_task(batcher.submit("k", 2))
        pause = asyncio.create_task(batcher.pause())
        await asyncio.sleep(0.05)
        assert not pause.done()  # the first batch is still running
        finish.set()
        await pause
        assert await first == 1
        await asyncio.sleep(0.05)
        assert not held.done()
        batcher.resume()
        assert await asyncio.wait_for(held, 10) == 2

    asyncio.run(main())
