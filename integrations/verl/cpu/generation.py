"""One batch of prompts through ``transformers.generate``: token ids in, token ids and log-probs out."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

# `generate` keeps the scores of all steps until the end: rows x new tokens x vocabulary, in float32.
MAX_SCORE_BYTES = 2**30


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; hashable, so that requests with equal parameters can share a batch."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    logprobs: bool = False

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(
                f"max_new_tokens: expected at least 1, got {self.max_new_tokens}; raise data.max_response_length."
            )
        if self.temperature < 0:
            raise ValueError(f"temperature: expected a number >= 0 (0 is greedy), got {self.temperature}.")

    @classmethod
    def from_request(cls, request: dict[str, Any], response_length: int) -> "SamplingParams":
        """Read the dictionary that verl's agent loops send; ``response_length`` bounds the number of new tokens."""
        request = dict(request)
        limits = [request.pop(key) for key in ("max_tokens", "max_new_tokens") if request.get(key) is not None]
        unknown = request.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(
                f"sampling_params: the CPU rollout does not know {sorted(unknown)}; expected some of "
                f"{sorted(cls.__dataclass_fields__)}. Remove them, or use another rollout.name."
            )
        return cls(max_new_tokens=min([response_length, *limits]), **request)

    def generation_config(self, eos_token_ids: list[int], pad_token_id: int) -> GenerationConfig:
        """The same in transformers' words. Everything is spelled out: its defaults are not verl's."""
        sampling = (
            {"do_sample": False}
            if self.temperature == 0
            else {
                "do_sample": True,
                "temperature": self.temperature,
                "top_k": max(self.top_k, 0),  # verl's -1 is "off", transformers' 0 is
                "top_p": self.top_p,
            }
        )
        return GenerationConfig(
            **sampling,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=eos_token_ids or None,
            pad_token_id=pad_token_id,
            output_scores=self.logprobs,
            return_dict_in_generate=True,
        )


@dataclass(frozen=True)
class Generated:
    """One response. ``log_probs`` are those of the distribution sampled from (after temperature, top-k, top-p)."""

    token_ids: list[int]
    log_probs: list[float] | None


def generate_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    params: SamplingParams,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
) -> list[Generated]:
    """Generate one response per prompt, in as few left-padded batches as the memory for the scores allows."""
    rows = len(prompts)
    if params.logprobs:
        bytes_per_row = params.max_new_tokens * model.config.vocab_size * 4
        rows = max(1, min(rows, MAX_SCORE_BYTES // bytes_per_row))
    responses = []
    for start in range(0, len(prompts), rows):
        responses += _generate_padded(model, prompts[start : start + rows], params, eos_token_ids, pad_token_id)
    return responses


@torch.inference_mode()
def _generate_padded(model, prompts, params, eos_token_ids, pad_token_id) -> list[Generated]:
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt)
        input_ids[row, start:] = torch.tensor(prompt)
        attention_mask[row, start:] = 1

    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=params.generation_config(eos_token_ids, pad_token_id),
    )
    tokens = output.sequences[:, width:]
    log_probs = _token_log_probs(tokens, output.scores) if params.logprobs else None

    responses = []
    for row, length in enumerate(_response_lengths(tokens, eos_token_ids)):
        responses.append(
            Generated(
                token_ids=tokens[row, :length].tolist(),
                log_probs=None if log_probs is None else log_probs[row, :length].tolist(),
            )
        )
    return responses


def _token_log_probs(tokens: torch.Tensor, scores: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Log-probability of each generated token, from the scores of each step."""
    steps = [torch.log_softmax(score.float(), dim=-1) for score in scores]
    return torch.stack([step.gather(-1, tokens[:, t : t + 1]).squeeze(-1) for t, step in enumerate(steps)], dim=1)


def _response_lengths(tokens: torch.Tensor, eos_token_ids: list[int]) -> list[int]:
    """Number of tokens of each row up to and including its first end token; what follows it is padding."""
    ended = torch.isin(tokens, torch.tensor(eos_token_ids, dtype=tokens.dtype))
    before_end = (ended.cumsum(dim=1) - ended.long()) == 0
    return before_end.sum(dim=1).tolist()
