// The ops, their arguments and their defaults. Start reading here.
//
//   maspo::loss           what users call: differentiable in log_prob. Its kernel is maspo_ext/ops.py, which checks the
//                         arguments and calls the two below.
//   maspo::loss_forward   one pass: loss, statistics, and d loss / d log_prob short of a scale per row. Arguments as in
//                         maspo::loss; checks only what memory safety needs, not the ranges of hyper-parameters.
//   maspo::loss_backward  dlogp * row_scale * grad_loss, rounded to `dtype`, that of log_prob.
//   maspo::cpu_isa        the instruction set that the CPU kernels use: "plain", "avx2" or "avx512".
#include <torch/csrc/stable/library.h>

#define MASPO_LOSS_ARGUMENTS                                                                    \
  "Tensor log_prob, Tensor old_log_prob, Tensor advantages, Tensor response_mask, *, "          \
  "Tensor? rollout_is_weights=None, float sigma_base=1.0, float alpha=0.3, "                    \
  "float sigma_high=10.0, float adv_low=0.1, float adv_high=10.0, float beta_pos=0.03, "        \
  "float beta_neg=0.03, str loss_agg_mode=\"token-mean\", int dp_size=1, "                      \
  "SymInt? batch_num_tokens=None, SymInt? global_batch_size=None, float? loss_scale_factor=None, "    \
  "bool gate_gradient=False, float clip_ratio_low=0.2, float clip_ratio_high=0.2, "             \
  "float clip_ratio_c=3.0"

STABLE_TORCH_LIBRARY(maspo, m) {
  m.def("loss(" MASPO_LOSS_ARGUMENTS ") -> (Tensor loss, Tensor stats)");
  m.def("loss_forward(" MASPO_LOSS_ARGUMENTS
        ", bool need_grad=True) -> (Tensor loss, Tensor stats, Tensor dlogp, Tensor row_scale)");
  m.def("cpu_isa() -> str");
  m.def("loss_backward(Tensor grad_loss, Tensor dlogp, Tensor row_scale, ScalarType dtype) -> Tensor");
}
