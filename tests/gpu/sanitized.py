"""A small set of calls for compute-sanitizer: every kernel, with tails, strides and packed input. Run by `make gpu`.

``--without-products`` leaves out what calls torch's BLAS: initcheck looks at every kernel, and those take minutes.
``--without-short-memory`` leaves out the product of BLAS in which racecheck ends with an internal error of its own (that of
CUDA 13.0, on an H200).
"""

import sys

import torch

import maspo_ext


def losses():
    for rows, cols, dtype in (
        (3, 130, torch.float32),
        (2, 515, torch.bfloat16),
        (5, 33, torch.float64),
        (1, 4, torch.float16),
        (700, 3, torch.float32),  # several rows for each thread of the last block
        (300, 256, torch.float32),  # rows of whole steps side by side
    ):
        old = -3 * torch.rand(rows, cols, device="cuda", dtype=torch.float64)
        new = old + 0.5 * torch.randn_like(old)
        tensors = [value.to(dtype) for value in (new, old, torch.randn_like(old))]
        scattered = torch.rand(rows, cols, device="cuda") < 0.8
        padding = torch.arange(cols, device="cuda") < torch.linspace(cols, cols / 3, rows, device="cuda")[:, None]
        for mask in (scattered, padding, padding.long()):
            for ratio_mode in maspo_ext.RATIO_MODES:
                options = {"entropy": torch.rand_like(tensors[0])} if ratio_mode == "entropy_adv" else {}
                log_prob = tensors[0].clone().requires_grad_()
                for counts in ({}, {"batch_num_tokens": 9, "global_batch_size": 2}):
                    maspo_ext.policy_loss(
                        log_prob, *tensors[1:], mask, ratio_mode=ratio_mode, **options, **counts
                    ).loss.backward()
        cu_seqlens = torch.arange(rows + 1, device="cuda") * cols
        packed = [value.reshape(-1) for value in (*tensors, padding)]
        packed[0] = packed[0].clone().requires_grad_()
        maspo_ext.policy_loss(
            *packed, cu_seqlens=cu_seqlens, max_seqlen=cols, ref_log_prob=packed[1], kl_coef=0.1
        ).loss.backward()


def large_losses():
    """By groups of steps (csrc/cuda/groups.h), two a row: the formulas of other methods are those of the small ones."""
    rows = torch.cuda.get_device_properties("cuda").multi_processor_count * 16 * 16 // 2 + 3
    old = -torch.rand(rows, 1024, device="cuda")
    padding = torch.arange(1024, device="cuda") < torch.linspace(1024, 100, rows, device="cuda")[:, None]
    for ratio_mode in ("maspo", "ppo"):
        log_prob = (old + 0.1).requires_grad_()
        maspo_ext.policy_loss(log_prob, old, -old, padding, ratio_mode=ratio_mode).loss.backward()


def rows_of_logits():
    for words, dtype in (
        (5, torch.float32),
        (8200, torch.float32),
        (16500, torch.float32),  # two blocks for a row backward
        (9001, torch.bfloat16),
        (515, torch.float16),
        (2050, torch.float64),
    ):
        for inplace_backward in (False, True):
            logits = torch.randn(3, 3, words, device="cuda", dtype=dtype, requires_grad=True)
            target = torch.tensor([[0, words - 1], [-100, words], [1, 2]], device="cuda")
            results = torch.ops.maspo.logprob(logits.clone()[:, :2], target, 0.7, inplace_backward=inplace_backward)
            sum(result.sum() for result in results).backward()


def hidden_states():
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(5, 16, device="cuda", dtype=dtype, requires_grad=True)
        weight = torch.randn(1003, 16, device="cuda", dtype=dtype, requires_grad=True)
        target, old = torch.randint(1003, (5,), device="cuda"), -torch.rand(5, device="cuda")
        log_prob, entropy = torch.ops.maspo.linear_logprob(hidden, weight, target)
        (log_prob.sum() + entropy.sum()).backward()
        mask = torch.ones(5, device="cuda")
        # 1: of some words the logits' gradients are kept, of others made again
        for memory_budget in (None,) if "--without-short-memory" in sys.argv[1:] else (None, 1):
            of_loss = maspo_ext.linear_loss(
                hidden[None], weight, target[None], old[None], old[None], mask[None], memory_budget=memory_budget
            )
            (3 * of_loss.loss).backward()


torch.manual_seed(0)
losses()
large_losses()
rows_of_logits()
if "--without-products" not in sys.argv[1:]:
    hidden_states()
torch.cuda.synchronize()
print("done")
