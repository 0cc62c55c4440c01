"""What one of two gloo ranks computes with its shard of the vocabulary; run by test_vocab_parallel.py."""

import sys

import torch
import torch.distributed as dist

import maspo_ext

VOCABULARY, SHARDS = 301, ((0, 150), (150, 301))  # of unlike size
EQUAL = ((0, 150), (150, 300))
ROWS, HIDDEN, TEMPERATURE, IGNORED = 9, 17, 0.7, 3


# What both ranks say of SHARDS, by rank, and is not so.
WRONG = (
    {},  # of one size
    {"first_word": (0, 150), "all_words": (301, 302)},
    {"first_word": (0, 151), "all_words": (302, 302)},
)


def inputs(dtype: torch.dtype, words: int = VOCABULARY) -> dict[str, torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "hidden": torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64),
        "weight": torch.randn(words, HIDDEN, generator=generator, dtype=torch.float64),
        "bias": torch.randn(words, generator=generator, dtype=torch.float64),
    }
    given = {name: value.to(dtype) for name, value in given.items()}
    given["target"] = torch.randint(words, (ROWS,), generator=generator)
    given["target"][IGNORED] = -100
    given["target"][0], given["target"][1] = 149, 150  # on either side of the cut
    given["target"][4] = 200
    given["hidden"][2] *= 6  # confident
    given["upstream"] = torch.randn(2, ROWS, generator=generator, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    return given


def logits_of(given: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = given["hidden"] @ given["weight"].T + given["bias"]
    logits[4, :150] = -torch.inf  # all of the first rank's words are banned
    return logits


def gradients(results, upstream, wanted):
    return torch.autograd.grad((torch.stack(tuple(results)) * upstream).sum(), wanted)


def refusal(rank: int, **where: tuple[int, int]) -> str:
    first, last = SHARDS[rank]
    given = inputs(torch.float64)
    try:
        maspo_ext.vocab_parallel_logprob(
            logits_of(given)[:, first:last], given["target"], **{name: of_rank[rank] for name, of_rank in where.items()}
        )
    except ValueError as error:
        return str(error)
    return "none"


def second_derivative(rank: int, trained: str) -> str:
    """What is said where the gradient of ``trained``, which alone has one, is used again."""
    given, (first, last) = inputs(torch.float64, EQUAL[-1][1]), EQUAL[rank]
    given |= {name: given[name][first:last].clone() for name in ("weight", "bias")}
    wanted = given[trained].requires_grad_()
    log_prob, _ = maspo_ext.vocab_parallel_linear_logprob(
        given["hidden"], given["weight"], given["target"], TEMPERATURE, given["bias"]
    )
    (grad,) = torch.autograd.grad(log_prob.sum(), wanted, create_graph=True)
    try:
        (log_prob.sum() + grad.pow(2).sum()).backward()
    except RuntimeError as error:
        return str(error)
    return "none"


def main(rank: int, store: str, result_path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name, shards in (("named", SHARDS), ("equal", EQUAL)):
            words = shards[-1][1]
            given, (first, last) = inputs(dtype, words), shards[rank]
            where = {"first_word": first, "all_words": words} if name == "named" else {}
            logits = logits_of(given)[:, first:last].detach().requires_grad_()
            results = maspo_ext.vocab_parallel_logprob(logits, given["target"], TEMPERATURE, **where)
            found[dtype, name, "logprob"] = (*results, *gradients(results, given["upstream"], (logits,)))

            wanted = [given["hidden"], given["weight"][first:last].clone(), given["bias"][first:last].clone()]
            hidden, weight, bias = (value.requires_grad_() for value in wanted)
            results = maspo_ext.vocab_parallel_linear_logprob(
                hidden, weight, given["target"], TEMPERATURE, bias, memory_budget=4096, **where
            )
            found[dtype, name, "linear"] = (*results, *gradients(results, given["upstream"], (hidden, weight, bias)))
    found["second"] = [second_derivative(rank, trained) for trained in ("hidden", "weight", "bias")]
    found["refused"] = [refusal(rank, **where) for where in WRONG]
    torch.save(found, f"{result_path}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
