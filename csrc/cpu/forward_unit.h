// The forward pass over one unit of the batch, for one instruction set. The including file sets the target and defines
// exp_of for its vectors first.
#pragma once

#include "cpu/engine.h"
#include "cpu/load.h"
#include "cpu/vec.h"

namespace maspo {
namespace {

// Tokens staged at a time: five buffers of it stay in the L1 cache, and a float sum over it loses no digits that matter
// before it is added to a double.
constexpr int kRun = 256;

template <class S>
struct alignas(64) Run {
  S mask[kRun], log_prob[kRun], old_log_prob[kRun], advantage[kRun], is_weight[kRun];
};

// Where the tokens of a run can be read: in place where dtype and stride allow and the run is full, else in the buffer.
template <class S>
inline const S* stage(const View& v, int64_t row, int64_t col, int count, S* buffer) {
  constexpr DType own = sizeof(S) == sizeof(float) ? kFloat32 : kFloat64;
  if (v.dtype == own && v.col_stride == 1 && count == kRun) {
    return static_cast<const S*>(v.data) + row * v.row_stride + col;
  }
  load_tokens(v, row, col, count, buffer);
  return buffer;
}

template <class V>
inline StatSums<double> sums_over_lanes(const StatSums<V>& s) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  StatSums<double> total = no_sums<double>();
  S lane[lanes];
  for (int k = 0; k < kNumSums; ++k) {
    Lanes<V>::store(lane, s.sum[k]);
    for (int i = 0; i < lanes; ++i) total.sum[k] += lane[i];
  }
  Lanes<V>::store(lane, s.ratio_min);
  for (int i = 0; i < lanes; ++i) total.ratio_min = lane[i] < total.ratio_min ? lane[i] : total.ratio_min;
  Lanes<V>::store(lane, s.ratio_max);
  for (int i = 0; i < lanes; ++i) total.ratio_max = lane[i] > total.ratio_max ? lane[i] : total.ratio_max;
  return total;
}

template <class S>
inline bool any_unmasked(const S* mask, int count) {
  bool any = false;
  for (int i = 0; i < count; ++i) any |= mask[i] != S(0);
  return any;
}

// One run of a row; `dlogp` may be null.
template <class V>
inline void forward_run(const LossParams& p, const LossHyper<scalar_t<V>>& h, int64_t row, int64_t col, int count,
                        Run<scalar_t<V>>& buffer, scalar_t<V>* dlogp, StatSums<double>& sums, RowSums& row_sums) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  const S* mask = stage(p.response_mask, row, col, count, buffer.mask);
  if (!any_unmasked(mask, count)) {
    if (dlogp != nullptr) __builtin_memset(dlogp, 0, count * sizeof(S));
    return;
  }
  const int padded = (count + lanes - 1) / lanes * lanes;
  for (int i = count; i < padded; ++i) buffer.mask[i] = S(0);  // only a partial run is padded, and it is in the buffer
  const S* log_prob = stage(p.log_prob, row, col, count, buffer.log_prob);
  const S* old_log_prob = stage(p.old_log_prob, row, col, count, buffer.old_log_prob);
  const S* advantage = stage(p.advantages, row, col, count, buffer.advantage);
  const bool weighted = p.rollout_is_weights.data != nullptr;
  const S* is_weight = weighted ? stage(p.rollout_is_weights, row, col, count, buffer.is_weight) : nullptr;

  StatSums<V> run_sums = no_sums<V>();
  V loss = V(S(0));
  for (int i = 0; i < padded; i += lanes) {
    const TokenInputs<V> in{Lanes<V>::load(mask + i), Lanes<V>::load(log_prob + i), Lanes<V>::load(old_log_prob + i),
                            Lanes<V>::load(advantage + i), weighted ? Lanes<V>::load(is_weight + i) : V(S(1))};
    const TokenOutputs<V> out = visit_token(in, h, run_sums);
    loss += out.loss;
    if (dlogp == nullptr) continue;
    if (i + lanes <= count) {
      Lanes<V>::store(dlogp + i, out.dlogp);
    } else {
      S tail[lanes];
      Lanes<V>::store(tail, out.dlogp);
      __builtin_memcpy(dlogp + i, tail, (count - i) * sizeof(S));
    }
  }

  const StatSums<double> run_total = sums_over_lanes(run_sums);
  add_sums(sums, run_total);
  row_sums.tokens += run_total.sum[kTokens];
  S lane[lanes];
  Lanes<V>::store(lane, loss);
  for (int i = 0; i < lanes; ++i) row_sums.loss += lane[i];
}

template <class V>
void forward_unit(const LossParams& p, int64_t unit) {
  using S = scalar_t<V>;
  const LossHyper<S> h = hyper_as<S>(p.hyper);
  const Tiling& tiling = p.tiling;
  const int64_t pieces = tiling.pieces_per_row;
  const int64_t rows = rows_per_unit(p.cols);
  const int64_t first_row = unit / pieces * rows;
  const int64_t last_row = first_row + rows < p.rows ? first_row + rows : p.rows;
  const int64_t piece = unit % pieces;
  const int64_t first_col = piece * tiling.piece_tokens;
  const int64_t last_col = first_col + tiling.piece_tokens < p.cols ? first_col + tiling.piece_tokens : p.cols;

  Run<S> buffer = {};
  StatSums<double> sums = no_sums<double>();
  for (int64_t row = first_row; row < last_row; ++row) {
    RowSums row_sums = {0.0, 0.0};
    for (int64_t col = first_col; col < last_col; col += kRun) {
      const int count = static_cast<int>(last_col - col < kRun ? last_col - col : kRun);
      S* dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + row * p.cols + col;
      forward_run<V>(p, h, row, col, count, buffer, dlogp, sums, row_sums);
    }
    p.pieces[row * pieces + piece] = row_sums;
  }
  p.units[unit] = sums;
}

}  // namespace
}  // namespace maspo
