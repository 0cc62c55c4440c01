// The ops, their arguments and their defaults. Start reading here.
//
//   maspo::loss           what users call: differentiable in log_prob. Its kernel is maspo_ext/ops.py, which checks the
//                         arguments and calls those below. The named hyper-parameters are MASPO's; any other ratio_mode
//                         takes its own as `hyper`, in the order of its config class (maspo_ext/methods/). Without
//                         loss_agg_mode, that of the method's reference.
//   maspo::loss_forward   loss, statistics, d loss / d log_prob (dlogp), and scales, [1 + rows]: that of all rows, and what
//                         each has of its own; a row's scale is their product, and 0 where its own is. On a CPU dlogp has it
//                         already. On a GPU, where one pass does it all, scales are what dlogp still lacks: 1 where the
//                         caller's counts give the scale, and all of it else, and without need_grad.
//                         `method` is a name of csrc/core/methods.h; checks only what memory safety needs, not ranges.
//   maspo::loss_forward_packed   the same with names and numbers in one list, as maspo::loss_settings returns it: for a caller
//                         that keeps it while it runs. No graph has it, since the list's order is that of this version.
//   maspo::loss_backward  that derivative times grad_loss, rounded to `dtype`, that of log_prob.
//   maspo::loss_backward_out     the same into `grad`, which may be dlogp.
//   maspo::bapo_sums      BAPO's sums at all candidates, lower ones first: float64, to be added over data-parallel ranks.
//   maspo::bapo_bounds    what BAPO's search finds in them: (low, high, positive / negative), float64 [3].
//   maspo::logprob        from logits to the log-probability of the target word and the entropy of the row; differentiable.
//                         Its kernel is maspo_ext/logits/logprob.py, which calls those below.
//   maspo::logprob_forward       also the state that backward needs: (max of the logits, log of the sum of
//                         exp((logit - max) / temperature)), float64 [..., 2].
//   maspo::logprob_backward      d loss / d logits. A shard of the vocabulary has the words from first_word on of all_words.
//   maspo::logprob_backward_out  the same into `grad`, which may be the memory of logits.
//   maspo::logprob_backward_blocks_out  the same into `grads`, one for each block of words.
//   maspo::linear_logprob, linear_loss  the same and the loss from hidden states and the weight of the head, in chunks. Their
//                         kernels, and those of their _forward and _backward, are Python: maspo_ext/logits/.
//   maspo::scale_         a tensor times a number in place, on a GPU, where nobody looks at that number before: 1 costs nothing.
//   maspo::cpu_isa        the instruction set that the CPU kernels use: "plain", "avx2", "avx512" or "neon".
#include <torch/csrc/stable/library.h>

#define MASPO_REWARDED "Tensor advantages, Tensor response_mask"
#define MASPO_TENSORS "Tensor log_prob, Tensor old_log_prob, " MASPO_REWARDED
#define MASPO_GLOBAL "SymInt? batch_num_tokens=None, SymInt? global_batch_size=None"
#define MASPO_FACTOR "float? loss_scale_factor=None"
#define MASPO_COUNTS "int dp_size=1, " MASPO_GLOBAL ", " MASPO_FACTOR
#define MASPO_SHAPING "float entropy_alpha=0.0, float entropy_kappa=2.0"
#define MASPO_ENTROPY "Tensor? entropy=None, " MASPO_SHAPING
#define MASPO_KL "str kl_type=\"k3\", float kl_coef=0.0"
#define MASPO_BOUNDS "float? rollout_is_lower=None, float? rollout_is_upper=None"
#define MASPO_METHOD "str method, float[] hyper, float clip_ratio_c"
#define MASPO_AGGREGATION "str loss_agg_mode=\"token-mean\""
#define MASPO_PACKED "Tensor? cu_seqlens=None, SymInt? max_seqlen=None"
#define MASPO_OPTIONS                                                                               \
  "bool dual_clip=False, " MASPO_ENTROPY ", Tensor? ref_log_prob=None, " MASPO_KL ", " MASPO_BOUNDS ", " MASPO_PACKED
#define MASPO_LOSS_KEYWORDS                                                                         \
  "Tensor? rollout_is_weights=None, float sigma_base=1.0, float alpha=0.3, float sigma_high=10.0, " \
  "float adv_low=0.1, float adv_high=10.0, float beta_pos=0.03, float beta_neg=0.03, "              \
  "str? loss_agg_mode=None, " MASPO_COUNTS                                                          \
  ", bool gate_gradient=False, float clip_ratio_low=0.2, float clip_ratio_high=0.2, "               \
  "float clip_ratio_c=3.0, str ratio_mode=\"maspo\", float[] hyper=[], Tensor? bapo_sums=None, " MASPO_OPTIONS
#define MASPO_KERNEL_KEYWORDS                                                                       \
  MASPO_METHOD ", Tensor? rollout_is_weights=None, Tensor? clip_bounds=None, " MASPO_AGGREGATION ", " MASPO_COUNTS ", " MASPO_OPTIONS
#define MASPO_FORWARD "(Tensor loss, Tensor stats, Tensor dlogp, Tensor scales)"
#define MASPO_LOSS_BACKWARD "Tensor grad_loss, Tensor dlogp, Tensor scales"

// Which words of which vocabulary the logits are.
#define MASPO_SHARD "int first_word=0, SymInt? all_words=None"
#define MASPO_WORDS "float temperature, int ignore_index, " MASPO_SHARD
#define MASPO_LOGPROB_BACKWARD                                                                      \
  "Tensor dlog_prob, Tensor? dentropy, Tensor logits, Tensor target, Tensor entropy, Tensor state, " MASPO_WORDS
#define MASPO_LINEAR "Tensor hidden, Tensor weight, Tensor target"
// Without old_log_prob, the policy that is trained is the old one.
#define MASPO_LINEAR_LOSS MASPO_LINEAR ", Tensor? old_log_prob, " MASPO_REWARDED
#define MASPO_HEAD "float temperature=1.0, Tensor? bias=None, *, int? memory_budget=None"
#define MASPO_BONUS "float entropy_coef=0.0"
#define MASPO_NEEDED "bool need_hidden=True, bool need_weight=True, bool need_bias=False"
#define MASPO_GRADS "Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias"

STABLE_TORCH_LIBRARY(maspo, m) {
  m.def("loss(" MASPO_TENSORS ", *, " MASPO_LOSS_KEYWORDS ") -> (Tensor loss, Tensor stats)");
  m.def("loss_forward(" MASPO_TENSORS ", *, " MASPO_KERNEL_KEYWORDS
        ", bool need_grad=True) -> " MASPO_FORWARD);
  m.def("loss_settings(" MASPO_METHOD ", *, " MASPO_AGGREGATION ", int dp_size=1, " MASPO_FACTOR
        ", bool dual_clip=False, " MASPO_SHAPING ", " MASPO_KL ", " MASPO_BOUNDS ") -> float[]");
  m.def("loss_forward_packed(" MASPO_TENSORS ", float[] settings, *, Tensor? rollout_is_weights=None, Tensor? entropy=None, "
        "Tensor? ref_log_prob=None, Tensor? clip_bounds=None, " MASPO_PACKED ", " MASPO_GLOBAL
        ", bool need_grad=True) -> " MASPO_FORWARD);
  m.def("loss_backward(" MASPO_LOSS_BACKWARD ", ScalarType dtype, " MASPO_PACKED ") -> Tensor");
  m.def("loss_backward_out(" MASPO_LOSS_BACKWARD ", " MASPO_PACKED ", *, Tensor(a!) grad) -> ()");
  m.def("bapo_sums(" MASPO_TENSORS ", *, float[] lower, float[] upper, " MASPO_ENTROPY ", " MASPO_PACKED
        ") -> Tensor");
  m.def("bapo_bounds(Tensor sums, *, float[] lower, float[] upper, float target, float eps, bool upper_first)"
        " -> Tensor");
  m.def("logprob(Tensor logits, Tensor target, float temperature=1.0, *, int ignore_index=-100, "
        "bool inplace_backward=False) -> (Tensor log_prob, Tensor entropy)");
  m.def("logprob_forward(Tensor logits, Tensor target, " MASPO_WORDS
        ") -> (Tensor log_prob, Tensor entropy, Tensor state)");
  m.def("logprob_backward(" MASPO_LOGPROB_BACKWARD ") -> Tensor");
  m.def("logprob_backward_out(" MASPO_LOGPROB_BACKWARD ", *, Tensor(a!) grad) -> ()");
  m.def("logprob_backward_blocks_out(" MASPO_LOGPROB_BACKWARD ", *, Tensor(a!)[] grads) -> ()");
  m.def("linear_logprob(" MASPO_LINEAR ", " MASPO_HEAD
        ", int ignore_index=-100) -> (Tensor log_prob, Tensor entropy)");
  m.def("linear_logprob_forward(" MASPO_LINEAR ", " MASPO_HEAD
        ", int ignore_index, " MASPO_SHARD ") -> (Tensor log_prob, Tensor entropy, Tensor state)");
  m.def("linear_logprob_backward(Tensor dlog_prob, Tensor? dentropy, " MASPO_LINEAR ", Tensor entropy, Tensor state, "
        MASPO_HEAD ", int ignore_index, " MASPO_SHARD ", " MASPO_NEEDED ") -> (" MASPO_GRADS ")");
  m.def("linear_loss(" MASPO_LINEAR_LOSS ", " MASPO_HEAD ", " MASPO_LOSS_KEYWORDS ", " MASPO_BONUS
        ") -> (Tensor loss, Tensor stats, Tensor log_prob, Tensor entropy)");
  m.def("linear_loss_forward(" MASPO_LINEAR_LOSS ", " MASPO_HEAD ", " MASPO_KERNEL_KEYWORDS
        ", " MASPO_BONUS ", bool shaped=False, " MASPO_NEEDED
        ") -> (Tensor loss, Tensor stats, Tensor log_prob, Tensor entropy, " MASPO_GRADS ")");
  m.def("scale_(Tensor(a!) tensor, Tensor by) -> ()");
  m.def("cpu_isa() -> str");
}
