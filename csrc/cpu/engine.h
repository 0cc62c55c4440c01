// The CPU engine: called by csrc/torch, which brings the threads.
#pragma once

#include "core/logit_rows.h"
#include "core/params.h"

namespace maspo {

// Short rows share a unit, so that a unit is worth its overhead; long rows are cut, one piece a unit.
constexpr int64_t kCpuPieceTokens = 4096;

inline int64_t rows_per_unit(int64_t cols) {
  if (cols == 0) return kCpuPieceTokens;
  return cols >= kCpuPieceTokens ? 1 : kCpuPieceTokens / cols;
}

inline int64_t longest_row(const Batch& b) {
  if (b.cu_seqlens == nullptr) return b.cols;
  int64_t longest = 0;
  for (int64_t row = 0; row < b.rows; ++row) longest = bounded(row_span(b, row).last, longest, b.cols);
  return longest;
}

// Without the pieces that would be empty in every row of a packed batch: a caller's max_seqlen may be of any size.
inline Tiling cpu_tiling(const Batch& b) {
  const int64_t width = longest_row(b);
  const int64_t pieces = width > kCpuPieceTokens ? ceil_div(width, kCpuPieceTokens) : 1;
  return {kCpuPieceTokens, pieces, ceil_div(b.rows, rows_per_unit(b.cols)) * pieces};
}

// A pass over one unit. Units are independent of each other.
using ForwardUnit = void (*)(const LossParams&, int64_t unit);
using BapoUnit = void (*)(const BapoParams&, int64_t unit);
// One row of logits; rows are independent of each other.
using LogprobRow = void (*)(const LogprobParams&, int64_t row);
using LogprobGradRow = void (*)(const LogprobGradParams&, const GradBlock&, int64_t row);

struct CpuKernels {
  const char* name;
  ForwardUnit count_float;
  ForwardUnit count_double;
  ForwardUnit forward_float[kNumMethods];
  ForwardUnit forward_double[kNumMethods];
  BapoUnit bapo_float;
  BapoUnit bapo_double;
  LogprobRow logprob_float;
  LogprobRow logprob_double;
  LogprobGradRow logprob_grad_float;
  LogprobGradRow logprob_grad_double;
};

extern const CpuKernels kPlainKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const CpuKernels kNeonKernels;
#endif

// The kernels for the instruction set of this machine, or those that `requested` names ("plain", "avx2", "avx512", "neon").
// Null: this machine or build has none of that name.
const CpuKernels* cpu_kernels(const char* requested);

// After the count of all units: the scale of every row.
void scale_rows_cpu(const LossParams& p);
// After the forward pass of all units: loss and statistics, added up in a fixed order.
void finish_forward_cpu(const LossParams& p, bool is_double);
void finish_bapo_cpu(const BapoParams& p);

// All of that, in its order: for_units(pass) is to run a pass over every unit.
template <class ForUnits>
void forward_cpu(const CpuKernels& kernels, const LossParams& p, ForUnits for_units) {
  const bool is_double = p.log_prob.dtype == kFloat64;
  for_units(is_double ? kernels.count_double : kernels.count_float);
  scale_rows_cpu(p);
  for_units((is_double ? kernels.forward_double : kernels.forward_float)[p.method]);
  finish_forward_cpu(p, is_double);
}

// grad = dlogp * grad_loss for the tokens [first, last); grad has dtype `dtype` and may be dlogp, both are contiguous.
void backward_cpu(const void* dlogp, double grad_loss, void* grad, DType dtype, int64_t first, int64_t last);

}  // namespace maspo
