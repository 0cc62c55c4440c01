"""A batch, and loss and gradients of an update with it in plain torch: what verl's updates are compared with."""

import torch

from maspo_ext import RATIO_MODES, reference, stat_names

ROWS, PROMPT, RESPONSE, VOCABULARY = 4, 3, 24, 64


def make_model():
    """A random model, the same in every call, whose log-probabilities differ by position."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def make_batch():
    """A padded batch with responses of different lengths; the same on every rank."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([24, 7, 19, 12])
    response_mask = (torch.arange(RESPONSE) < lengths[:, None]).long()
    attention_mask = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.long), response_mask], dim=1)
    input_ids = torch.randint(1, VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=draw) * attention_mask
    return {
        "input_ids": input_ids,
        "prompts": input_ids[:, :PROMPT],
        "responses": input_ids[:, PROMPT:],
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": response_mask,
        # Both signs in a micro-batch of two ranks, one on each: bapo's bounds are then others for each rank alone.
        "advantages": torch.tensor([1.4, -0.5, -0.9, 1.1])[:, None].expand(ROWS, RESPONSE).contiguous(),
        "rollout_is_weights": 0.5 + torch.rand(ROWS, RESPONSE, generator=draw),
        # Off-policy enough for the gate to act on both sides.
        "old_log_probs": -4.2 + 0.8 * torch.randn(ROWS, RESPONSE, generator=draw),
    }


def log_probs_of(model, batch):
    """``[ROWS, RESPONSE, VOCABULARY]``: of every word at each place of the response."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, PROMPT - 1 : -1]
    return logits.float().log_softmax(-1)


def reference_update(model, batch, ratio_mode, hyper, loss_agg_mode, rows_of_micro_batches, **counts):
    """Loss and gradients by one plain forward of the whole batch and ``maspo_ext.reference``; statistics by part.

    The losses of the micro-batches are added up; ``counts``: what each is divided by.
    """
    model.zero_grad()
    log_probs = log_probs_of(model, batch)
    tensors = {
        "log_prob": log_probs.gather(-1, batch["responses"].unsqueeze(-1)).squeeze(-1),
        "old_log_prob": batch["old_log_probs"],
        "advantages": batch["advantages"],
        "response_mask": batch["response_mask"],
        "rollout_is_weights": batch["rollout_is_weights"],
    }
    if ratio_mode == "entropy_adv":
        tensors["entropy"] = -(log_probs.exp() * log_probs).sum(-1)
    losses, stats = [], []
    for rows in rows_of_micro_batches:
        loss, of_part = reference.loss(
            **{name: value[rows] for name, value in tensors.items()},
            **RATIO_MODES[ratio_mode](**hyper).op_keywords(ratio_mode),
            loss_agg_mode=loss_agg_mode,
            **counts,
        )
        losses.append(loss)
        stats.append(dict(zip(stat_names(ratio_mode), of_part.tolist(), strict=True)))
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, stats


def assert_same_gradients(got, expected):
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        scale = expected[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale.item(), msg=name)
