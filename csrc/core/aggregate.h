// How per-token losses become one number: loss = sum_b scale_b * sum_t mask * loss, one scale per row for every
// aggregation mode of verl 0.9.1 (agg_loss in verl/trainer/ppo/core_algos.py).
#pragma once

#include "core/portable.h"

namespace maspo {

enum AggMode { kTokenMean, kTokenSum, kSeqMeanTokenSum, kSeqMeanTokenMean, kSeqMeanTokenSumNorm, kNumAggModes };

constexpr const char* kAggModeNames[kNumAggModes] = {"token-mean", "token-sum", "seq-mean-token-sum",
                                                     "seq-mean-token-mean", "seq-mean-token-sum-norm"};

struct Aggregation {
  int32_t mode;
  // Negative: not given, take the local count.
  double batch_num_tokens;
  double global_batch_size;
  double dp_size;
  double loss_scale_factor;  // the "-norm" mode's divisor, the padded width unless given
};

struct RowCounts {
  double tokens;  // N: sum of the mask over the batch
  double rows;    // R: rows with at least one token
};

// What the scales of all rows with tokens have in common.
MASPO_HD double batch_scale(const Aggregation& a, const RowCounts& batch) {
  const double tokens = a.batch_num_tokens < 0 ? batch.tokens : a.batch_num_tokens;
  const double rows = a.global_batch_size < 0 ? batch.rows : a.global_batch_size;
  switch (a.mode) {
    case kTokenMean:
      return a.dp_size / tokens;
    case kTokenSum:
      return a.dp_size;
    case kSeqMeanTokenSumNorm:
      return a.dp_size / rows / a.loss_scale_factor;
    default:
      return a.dp_size / rows;
  }
}

// Whether the caller's counts give batch_scale, and it is that of every row: then it is known before the mask is.
MASPO_HD bool scale_is_given(const Aggregation& a) {
  switch (a.mode) {
    case kTokenMean:
      return a.batch_num_tokens > 0;
    case kTokenSum:
      return true;
    case kSeqMeanTokenSum:
    case kSeqMeanTokenSumNorm:
      return a.global_batch_size > 0;
    default:
      return false;
  }
}

MASPO_HD double row_scale(const Aggregation& a, double of_batch, double row_tokens) {
  // A row without tokens has no say, and a batch without tokens has loss 0 instead of 0 / 0. NaN counts go on; and a count below 0,
  // as of labels taken for a mask, is none.
  if (row_tokens == 0) return 0.0;
  if (row_tokens < 0) return not_a_number();
  return a.mode == kSeqMeanTokenMean ? of_batch / row_tokens : of_batch;
}

// A row's scale, from what all rows have in common and what this one has of its own, which is 0 for a row without tokens,
// whatever the other is.
MASPO_HD double scale_of_row(double of_batch, double of_row) { return of_row == 0 ? 0.0 : of_batch * of_row; }

}  // namespace maspo
