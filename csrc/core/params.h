// What the counter hands to an engine: plain pointers, sizes, strides and numbers. No torch, no CUDA runtime.
#pragma once

#include "core/aggregate.h"
#include "core/token.h"

namespace maspo {

enum DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64 };

// A [B, T] input of any dtype and strides (in elements); a broadcast dimension has stride 0.
struct View {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
  DType dtype;
};

// How an engine cuts the batch: into pieces of at most `piece_tokens` tokens of one row, and into units that are worked on
// independently. By B and T alone, so that the order of all additions, and every bit of the result, is the same from run to
// run and for any number of threads.
struct Tiling {
  int64_t piece_tokens;
  int64_t pieces_per_row;  // at least 1, so that a row of width 0 has its (empty) sums
  int64_t units;
};

// What a piece adds to its row.
struct RowSums {
  double tokens;
  double loss;
};

struct LossParams {
  int64_t rows, cols;
  View log_prob, old_log_prob, advantages, response_mask;
  View rollout_is_weights;  // data is null when there are none
  LossHyper<double> hyper;
  Aggregation aggregation;
  Tiling tiling;

  // Outputs of the pass; S is the arithmetic type, double for float64 inputs and float for all others.
  void* dlogp;  // [B, T] of S, contiguous: d loss / d log_prob before row_scale; null when no gradient is wanted
  RowSums* pieces;          // [B, tiling.pieces_per_row]
  StatSums<double>* units;  // [tiling.units]
  // Outputs of the finishing step.
  double* row_scale;  // [B]
  double* stats;      // [kNumStats]
  void* loss;         // one S
};

MASPO_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class S>
MASPO_HD LossHyper<S> hyper_as(const LossHyper<double>& h) {
  const MaspoHyper<double>& m = h.method;
  return {{static_cast<S>(m.sigma_base), static_cast<S>(m.alpha), static_cast<S>(m.sigma_high),
           static_cast<S>(m.adv_low), static_cast<S>(m.adv_high), static_cast<S>(m.beta_pos),
           static_cast<S>(m.beta_neg), m.gate_gradient},
          static_cast<S>(h.clip_low),
          static_cast<S>(h.clip_high),
          static_cast<S>(h.clip_c)};
}

}  // namespace maspo
