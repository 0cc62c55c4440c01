"""The Ray actor that generates: one model, one batcher, the control methods that verl's trainers call."""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.replica import TokenOutput

from .generation import SamplingParams, generate_batch
from .request_batcher import RequestBatcher

logger = logging.getLogger(__name__)


class RolloutServer:
    """Generates with ``transformers`` on the CPU. Wrapped by ``ray.remote`` in :mod:`.rollout_replica`.

    The weights come from the trainer: nothing can be generated before the first :meth:`update_weights`.
    """

    def __init__(self, config: RolloutConfig, model_config: HFModelConfig, replica_rank: int):
        self._response_length = config.response_length
        self._ignore_eos = config.ignore_eos
        self._global_steps: int | None = None
        self._rejecting = False
        self._paused = False
        self._batcher = RequestBatcher(self._generate, max_batch_size=config.max_num_seqs)

        # Replicas must not draw the same numbers. Which requests share a batch depends on timing, so a seed makes
        # runs independent of each other, not bitwise repeatable.
        torch.manual_seed(config.seed + replica_rank)

        self._eos_token_ids = _eos_token_ids(model_config)
        self._pad_token_id = _pad_token_id(model_config, self._eos_token_ids)
        self._model = AutoModelForCausalLM.from_config(
            model_config.hf_config,
            dtype=PrecisionType.to_dtype(config.dtype),
            trust_remote_code=model_config.trust_remote_code,
        ).eval()

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
    ) -> TokenOutput:
        """Generate the response to one prompt; see ``verl.workers.rollout.llm_server.LLMServerClient.generate``."""
        if image_data or video_data:
            raise ValueError("image_data, video_data: the CPU rollout takes text only; got images or videos.")
        if self._global_steps is None:
            raise RuntimeError("The CPU rollout was asked to generate before the trainer sent any weights.")
        if self._paused and self._rejecting:
            return self._output([], None, stop_reason="aborted")
        params = SamplingParams.from_request(sampling_params, self._response_length)
        response = await self._batcher.submit(params, list(prompt_ids))
        return self._output(response.token_ids, response.log_probs, stop_reason="completed")

    async def update_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> None:
        """Replace all weights, between batches. ``weights`` must name every parameter of the model."""
        await self._batcher.run_alone(self._model.load_state_dict, weights)
        self._global_steps = 0 if global_steps is None else global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Let the running batch end and hold the other requests, or answer new ones "aborted" if ``reject_request``.

        Batches here are short, so finishing one is cheaper than throwing its tokens away.
        """
        self._paused, self._rejecting = True, reject_request
        await self._batcher.pause()

    async def resume_generation(self) -> None:
        """Take up the held requests."""
        self._paused = self._rejecting = False
        self._batcher.resume()

    async def no_op(self) -> None:
        """Answers sleep, wake-up and cache calls: host memory is not shared with the trainer's, nothing is released."""

    sleep = wake_up = clear_kv_cache = release_kv_cache = resume_kv_cache = stop_profile = no_op

    async def start_profile(self, **kwargs) -> None:
        """Not supported; says so once per request instead of failing a run over a trace."""
        logger.warning("The CPU rollout has no profiler: no trace of the rollout is written.")

    def _generate(self, params: SamplingParams, prompts: list[list[int]]):
        return generate_batch(
            self._model,
            prompts,
            params,
            eos_token_ids=[] if self._ignore_eos else self._eos_token_ids,
            pad_token_id=self._pad_token_id,
        )

    def _output(self, token_ids, log_probs, stop_reason) -> TokenOutput:
        return TokenOutput(
            token_ids=token_ids,
            log_probs=log_probs,
            stop_reason=stop_reason,
            extra_fields={"global_steps": self._global_steps},
        )


def _eos_token_ids(model_config: HFModelConfig) -> list[int]:
    """The end tokens of the model's generation config, else the tokenizer's."""
    generation_config = model_config.generation_config
    eos = getattr(generation_config, "eos_token_id", None)
    if eos is None:
        eos = model_config.tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            f"eos_token_id: neither the generation config nor the tokenizer of {model_config.path} has one; "
            "set it in generation_config.json."
        )
    return list(eos) if isinstance(eos, list | tuple) else [eos]


def _pad_token_id(model_config: HFModelConfig, eos_token_ids: list[int]) -> int:
    pad = model_config.tokenizer.pad_token_id
    return eos_token_ids[0] if pad is None else pad
