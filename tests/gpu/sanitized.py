"""A small set of calls for compute-sanitizer: every kernel, with tails, strides and packed input. Run by `make gpu`."""

import torch

import maspo_ext

torch.manual_seed(0)
for rows, cols, dtype in (
    (3, 130, torch.float32),
    (2, 515, torch.bfloat16),
    (5, 33, torch.float64),
    (1, 4, torch.float16),
):
    old = -3 * torch.rand(rows, cols, device="cuda", dtype=torch.float64)
    new = old + 0.5 * torch.randn_like(old)
    tensors = [value.to(dtype) for value in (new, old, torch.randn_like(old))]
    mask = torch.rand(rows, cols, device="cuda") < 0.8
    for ratio_mode in maspo_ext.RATIO_MODES:
        options = {"entropy": torch.rand_like(tensors[0])} if ratio_mode == "entropy_adv" else {}
        log_prob = tensors[0].clone().requires_grad_()
        maspo_ext.policy_loss(log_prob, *tensors[1:], mask, ratio_mode=ratio_mode, **options).loss.backward()
    cu_seqlens = torch.arange(rows + 1, device="cuda") * cols
    packed = [value.reshape(-1) for value in (*tensors, mask)]
    packed[0] = packed[0].clone().requires_grad_()
    maspo_ext.policy_loss(
        *packed, cu_seqlens=cu_seqlens, max_seqlen=cols, ref_log_prob=packed[1], kl_coef=0.1
    ).loss.backward()
torch.cuda.synchronize()
print("done")
