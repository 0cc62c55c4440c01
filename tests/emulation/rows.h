// Rows of logits, forward and backward, on an engine: the CPU's, or the emulated CUDA one.
#pragma once

#include <vector>

#include "cpu/engine.h"
#include "cuda/engine.h"
#include "memory.h"

namespace emulation {

inline size_t arithmetic_size(DType dtype) { return dtype == kFloat64 ? sizeof(double) : sizeof(float); }

struct RowResults {
  explicit RowResults(const LogitRows& rows)
      : log_prob(row_count(rows) * arithmetic_size(rows.dtype)),
        entropy(row_count(rows) * arithmetic_size(rows.dtype)),
        state(row_count(rows) * sizeof(RowState)) {}
  Memory log_prob, entropy, state;
};

// `params` has the inputs.
inline RowResults forward_rows(LogprobParams params, bool on_cuda) {
  RowResults results(params.logits);
  params.log_prob = results.log_prob.as<void>();
  params.entropy = results.entropy.as<void>();
  params.state = results.state.as<RowState>();
  if (on_cuda) {
    check(logprob_cuda(params, {0, nullptr}));
  } else {
    const LogprobRow run = params.logits.dtype == kFloat64 ? kPlainKernels.logprob_double : kPlainKernels.logprob_float;
    for (int64_t row = 0; row < row_count(params.logits); ++row) run(params, row);
  }
  return results;
}

inline void backward_rows(const LogprobGradParams& params, const std::vector<GradBlock>& blocks, bool on_cuda) {
  if (on_cuda) {
    check(logprob_grad_cuda(params, blocks.data(), blocks.size(), {0, nullptr}));
  } else {
    const bool is_double = params.logits.dtype == kFloat64;
    const LogprobGradRow run = is_double ? kPlainKernels.logprob_grad_double : kPlainKernels.logprob_grad_float;
    for (const GradBlock& block : blocks) {
      for (int64_t row = 0; row < row_count(params.logits); ++row) run(params, block, row);
    }
  }
}

}  // namespace emulation
