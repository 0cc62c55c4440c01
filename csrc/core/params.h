// What csrc/torch hands to an engine: plain pointers, sizes, strides and numbers. No torch, no CUDA runtime.
#pragma once

#include "core/aggregate.h"
#include "core/batch.h"
#include "core/token.h"

namespace maspo {

struct LossParams {
  Batch batch;
  View log_prob, old_log_prob, advantages, response_mask;
  View rollout_is_weights, entropy, ref_log_prob;  // data is null where there are none
  int32_t method;                                  // enum Method
  double hyper[kMaxHyper];
  const double* clip_bounds;  // kNumClipBounds of BAPO's search, in the engine's memory; null: hyper has the bounds
  Options<double> options;
  Aggregation aggregation;
  Tiling tiling;  // of a CPU; a GPU's cut is in cuda/tiling.h

  // Outputs of the pass; S is the arithmetic type, double for float64 inputs and float for all others.
  // A number of S per token, contiguous: d loss / d log_prob, on a CPU whole, on a GPU before the row's scale; null: not wanted.
  void* dlogp;
  RowSums* pieces;          // [rows, tiling.pieces_per_row]; on a GPU as its cut has them
  StatSums<double>* units;  // [tiling.units]; on a GPU kUnitNumbers doubles a block
  // Outputs of the finishing step.
  // [rows] and, of a GPU, a number: the scale of a row is their product (scale_of_row), without what dlogp has of it already.
  double* row_scale;
  double* batch_scale;
  double* stats;  // [kNumStats]
  void* loss;     // one S
};

// What a GPU's pass over the tokens multiplies dlogp by: all of the scale, where that is known so early.
MASPO_HD double scale_of_pass(const LossParams& p) {
  return p.dlogp != nullptr && scale_is_given(p.aggregation) ? batch_scale(p.aggregation, {0, 0}) : 1.0;
}

// BAPO's pass over the tokens: the sums of bapo.h at all candidates.
struct BapoParams {
  Batch batch;
  View log_prob, old_log_prob, advantages, response_mask, entropy;
  double entropy_alpha, entropy_kappa;
  BapoCandidates candidates;
  Tiling tiling;
  double* units;  // [tiling.units, candidates]
  double* sums;   // [candidates]
};

MASPO_HD int32_t candidate_count(const BapoCandidates& c) { return c.lower_count + c.upper_count; }

template <class Hyper>
MASPO_HD Hyper hyper_of(const LossParams& p) {
  return Hyper::from(p.clip_bounds == nullptr ? p.hyper : p.clip_bounds);
}

template <class S>
MASPO_HD Options<S> options_as(const Options<double>& o) {
  return {static_cast<S>(o.clip_ratio_c),
          o.dual_clip,
          o.has_entropy,
          static_cast<S>(o.entropy_alpha),
          static_cast<S>(o.entropy_kappa),
          o.has_ref,
          o.kl_type,
          o.kl_straight_through,
          static_cast<S>(o.kl_coef),
          o.is_rule,
          static_cast<S>(o.is_lower),
          static_cast<S>(o.is_upper)};
}

}  // namespace maspo
