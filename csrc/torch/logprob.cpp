// maspo::logprob_forward, logprob_backward and its forms with memory that is given: from rows of logits to log-probability and entropy.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cpu/engine.h"
#include "torch/cpu_choice.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#if defined(MASPO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "cuda/engine.h"
#include "torch/cuda_stream.h"
#endif

namespace maspo {
namespace {

struct RowStrides {
  int64_t outer, inner;
  int64_t outer_stride, inner_stride;
};

// The leading dimensions as [outer, inner]: those that follow each other evenly in memory count as one.
RowStrides row_strides(const Tensor& t, const char* name) {
  const int64_t dims = t.dim();
  STD_TORCH_CHECK(dims >= 1, "maspo_ext: ", name, ": expected shape [..., V], got a number. Add a dimension.");
  STD_TORCH_CHECK(t.size(dims - 1) <= 1 || t.stride(dims - 1) == 1, "maspo_ext: ", name,
                  ": expected the words of a row next to each other (stride 1), got stride ", t.stride(dims - 1),
                  ". Call .contiguous(), which copies, or do not transpose.");
  RowStrides rows = {1, 1, 0, 0};
  for (int64_t dim = dims - 2; dim >= 0; --dim) {
    const int64_t size = t.size(dim), stride = t.stride(dim);
    if (size == 1) continue;
    if (rows.inner == 1) {
      rows.inner = size, rows.inner_stride = stride;
    } else if (rows.outer == 1 && stride == rows.inner * rows.inner_stride) {
      rows.inner *= size;
    } else if (rows.outer == 1) {
      rows.outer = size, rows.outer_stride = stride;
    } else {
      STD_TORCH_CHECK(stride == rows.outer * rows.outer_stride, "maspo_ext: ", name,
                      ": expected leading dimensions that two strides describe, got more. Call .contiguous(), which copies.");
      rows.outer *= size;
    }
  }
  return rows;
}

bool is_on(const Tensor& t, const Tensor& other) { return t.device() == other.device(); }

// Which words of which vocabulary.
struct Vocabulary {
  int64_t ignore_index, first_word;
  std::optional<int64_t> all_words;
};

void read_rows(const Tensor& logits, const Tensor& target, const Vocabulary& vocabulary, LogitRows& rows,
               Targets& targets) {
  const RowStrides strides = row_strides(logits, "logits");
  const DType dtype = dtype_of(logits.scalar_type(), "logits");
  STD_TORCH_CHECK(is_floating(dtype), "maspo_ext: logits: expected a dtype of floats, got ",
                  torch::headeronly::toString(logits.scalar_type()), ". Cast them: logits.to(torch.float32).");
  rows = {logits.const_data_ptr(), dtype, strides.outer, strides.inner, strides.outer_stride, strides.inner_stride,
          logits.size(logits.dim() - 1)};
  STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long && target.is_contiguous() && is_on(target, logits) &&
                      target.numel() == row_count(rows),
                  "maspo_ext: target: expected contiguous int64 on the device of logits, one per row of ", shape_of(logits), ", got ",
                  torch::headeronly::toString(target.scalar_type()), " of shape ", shape_of(target),
                  ". Call torch.ops.maspo.logprob, which converts it, or .to(torch.int64).contiguous().");
  const int64_t all_words = vocabulary.all_words.value_or(rows.words);
  STD_TORCH_CHECK(rows.words >= 1 && vocabulary.first_word >= 0 && vocabulary.first_word + rows.words <= all_words,
                  "maspo_ext: first_word: expected 0 to all_words - ", rows.words, " = ", all_words - rows.words, ", got ",
                  vocabulary.first_word, ". Where in the vocabulary of all_words = ", all_words, " does this shard begin?");
  targets = {static_cast<const int64_t*>(target.const_data_ptr()), vocabulary.ignore_index, vocabulary.first_word,
             all_words};
}

// On a GPU that would need a wait: there such a target's log-probability is NaN.
void check_targets(const LogprobParams& p) {
  for (int64_t row = 0; row < row_count(p.logits); ++row) {
    const int64_t index = p.target.index[row];
    STD_TORCH_CHECK(target_kind(p.target, p.logits.words, index) != kTargetInvalid, "maspo_ext: target: expected 0 to ",
                    p.target.all_words - 1, " (the vocabulary has ", p.target.all_words, " words) or ignore_index = ",
                    p.target.ignore_index, ", got ", index, " for row ", row,
                    ". Check the tokenizer against the model, or set padding to ignore_index.");
  }
}

// Short rows together, so that taking them is worth it.
template <class Pass>
void for_rows(int64_t rows, int64_t words, Pass pass) {
  for_each_on_threads(rows, std::max<int64_t>(1, kCpuPieceTokens / std::max<int64_t>(1, words)), pass);
}

std::tuple<Tensor, Tensor, Tensor> logprob_forward(Tensor logits, Tensor target, double temperature,
                                                   int64_t ignore_index, int64_t first_word,
                                                   std::optional<int64_t> all_words) {
  LogprobParams params = {};
  read_rows(logits, target, {ignore_index, first_word, all_words}, params.logits, params.target);
  params.inv_temperature = 1.0 / temperature;
  std::vector<int64_t> shape(logits.sizes().begin(), logits.sizes().end() - 1);
  const ScalarType type = arithmetic_type(params.logits.dtype);
  Tensor log_prob = new_contiguous(logits, shape, type);
  Tensor entropy = new_contiguous(logits, shape, type);
  shape.push_back(sizeof(RowState) / sizeof(double));
  Tensor state = new_contiguous(logits, shape, ScalarType::Double);
  params.log_prob = log_prob.mutable_data_ptr();
  params.entropy = entropy.mutable_data_ptr();
  params.state = data_of<RowState>(state);
#if defined(MASPO_WITH_CUDA)
  if (logits.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
    check_cuda(logprob_cuda(params, current_cuda_place(logits)), "logprob_forward");
    return {log_prob, entropy, state};
  }
#endif
  check_targets(params);
  const CpuKernels& kernels = chosen_cpu_kernels();
  const LogprobRow of_row = type == ScalarType::Double ? kernels.logprob_double : kernels.logprob_float;
  for_rows(row_count(params.logits), params.logits.words, [&](int64_t row) { of_row(params, row); });
  return {log_prob, entropy, state};
}

const void* row_data(const Tensor& t, const Tensor& logits, int64_t rows, ScalarType type) {
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == rows && t.scalar_type() == type && is_on(t, logits),
                  "maspo_ext: dlog_prob, dentropy, entropy, state: expected what logprob_forward returned, and contiguous gradients of "
                  "it, on the device of logits, got ", torch::headeronly::toString(t.scalar_type()), " of shape ", shape_of(t),
                  ". Pass them as they are, gradients as .contiguous().");
  return t.const_data_ptr();
}

// `grad` as that of the words from `first` on.
GradBlock grad_block(const LogprobGradParams& params, int64_t first, const Tensor& grad, const Tensor& logits) {
  const LogitRows& as = params.logits;
  RowStrides strides = row_strides(grad, "grads");
  const bool has_rows = strides.outer * strides.inner == row_count(as);
  // Evenly spaced rows may be counted as those of logits are.
  if (strides.outer == 1) strides = {as.outer, as.inner, as.inner * strides.inner_stride, strides.inner_stride};
  const GradBlock block = {grad.mutable_data_ptr(), first, grad.size(grad.dim() - 1), strides.outer_stride, strides.inner_stride};
  const DType dtype = dtype_of(grad.scalar_type(), "grads");
  STD_TORCH_CHECK(is_on(grad, logits) && has_rows && strides.outer == as.outer && strides.inner == as.inner &&
                      first + block.words <= as.words && dtype == params.grad_dtype && is_floating(dtype) &&
                      arithmetic_type(dtype) == arithmetic_type(as.dtype),
                  "maspo_ext: grads: expected shape ", shape_of(logits), " (that of logits) or blocks of its words, their device, and one "
                  "dtype with the same arithmetic, got ", torch::headeronly::toString(grad.scalar_type()), " of shape ", shape_of(grad),
                  ". Make it with torch.empty_like.");
  const bool over_logits = block.data == static_cast<const char*>(as.data) + first * size_of(as.dtype);
  STD_TORCH_CHECK(!over_logits || (dtype == as.dtype && strides.inner_stride == as.inner_stride &&
                                   (as.outer == 1 || strides.outer_stride == as.outer_stride)),
                  "maspo_ext: grads: expected the dtype and strides of logits, since it has their memory, got others. Pass logits itself.");
  return block;
}

void logprob_backward_blocks_out(Tensor dlog_prob, std::optional<Tensor> dentropy, Tensor logits, Tensor target,
                                 Tensor entropy, Tensor state, double temperature, int64_t ignore_index,
                                 int64_t first_word, std::optional<int64_t> all_words, std::vector<Tensor> grads) {
  LogprobGradParams params = {};
  read_rows(logits, target, {ignore_index, first_word, all_words}, params.logits, params.target);
  params.inv_temperature = 1.0 / temperature;
  const int64_t rows = row_count(params.logits);
  const ScalarType type = arithmetic_type(params.logits.dtype);
  params.dlog_prob = row_data(dlog_prob, logits, rows, type);
  params.dentropy = dentropy ? row_data(*dentropy, logits, rows, type) : nullptr;
  params.entropy = row_data(entropy, logits, rows, type);
  params.state = static_cast<const RowState*>(row_data(state, logits, 2 * rows, ScalarType::Double));
  if (rows == 0) return;  // no memory to compare either

  params.grad_dtype = dtype_of(grads.empty() ? type : grads[0].scalar_type(), "grads");
  std::vector<GradBlock> blocks;
  int64_t words = 0;
  for (const Tensor& grad : grads) {
    blocks.push_back(grad_block(params, words, grad, logits));
    words += blocks.back().words;
  }
  STD_TORCH_CHECK(words == params.logits.words, "maspo_ext: grads: expected those of all ", params.logits.words, " words, got those of ",
                  words, ". Pass one tensor like logits, or one for each block of words, in their order.");
#if defined(MASPO_WITH_CUDA)
  if (logits.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
    check_cuda(logprob_grad_cuda(params, blocks.data(), blocks.size(), current_cuda_place(logits)), "logprob_backward");
    return;
  }
#endif
  const CpuKernels& kernels = chosen_cpu_kernels();
  const LogprobGradRow of_row = type == ScalarType::Double ? kernels.logprob_grad_double : kernels.logprob_grad_float;
  for (const GradBlock& block : blocks) {
    for_rows(rows, block.words, [&](int64_t row) { of_row(params, block, row); });
  }
}

void logprob_backward_out(Tensor dlog_prob, std::optional<Tensor> dentropy, Tensor logits, Tensor target,
                          Tensor entropy, Tensor state, double temperature, int64_t ignore_index, int64_t first_word,
                          std::optional<int64_t> all_words, Tensor grad) {
  logprob_backward_blocks_out(dlog_prob, dentropy, logits, target, entropy, state, temperature, ignore_index, first_word,
                              all_words, {grad});
}

Tensor logprob_backward(Tensor dlog_prob, std::optional<Tensor> dentropy, Tensor logits, Tensor target, Tensor entropy,
                        Tensor state, double temperature, int64_t ignore_index, int64_t first_word,
                        std::optional<int64_t> all_words) {
  const std::vector<int64_t> shape(logits.sizes().begin(), logits.sizes().end());
  Tensor grad = new_contiguous(logits, shape, logits.scalar_type());
  logprob_backward_out(dlog_prob, dentropy, logits, target, entropy, state, temperature, ignore_index, first_word,
                       all_words, grad);
  return grad;
}

}  // namespace
}  // namespace maspo

#define MASPO_LOGPROB_KERNELS                                              \
  m.impl("logprob_forward", TORCH_BOX(&maspo::logprob_forward));           \
  m.impl("logprob_backward", TORCH_BOX(&maspo::logprob_backward));         \
  m.impl("logprob_backward_out", TORCH_BOX(&maspo::logprob_backward_out)); \
  m.impl("logprob_backward_blocks_out", TORCH_BOX(&maspo::logprob_backward_blocks_out));

STABLE_TORCH_LIBRARY_IMPL(maspo, CPU, m) { MASPO_LOGPROB_KERNELS }
#if defined(MASPO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(maspo, CUDA, m) { MASPO_LOGPROB_KERNELS }
#endif
