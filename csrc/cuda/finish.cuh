// From the sums of the pieces to loss, statistics and row scales: done by the forward kernel's block that comes last.
#pragma once

#include "cuda/reduce.cuh"

namespace maspo {

template <class S>
__device__ __forceinline__ void finish_forward(const LossParams& p, double* scratch, StatSums<double>* stat_scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t num_rows = p.batch.rows, pieces = p.tiling.pieces_per_row;

  // Rows: one warp each. The row's sums gather in its first piece, which only that warp's first lane touches again.
  double tokens = 0, rows = 0, unsound = 0;
  for (int64_t row = warp; row < num_rows; row += kWarpsPerBlock) {
    RowSums sums = {0.0, 0.0};
    for (int64_t i = lane; i < pieces; i += kWarp) {
      const RowSums piece = p.pieces[row * pieces + i];
      sums.tokens += piece.tokens;
      sums.loss += piece.loss;
    }
    sums = {warp_sum(sums.tokens), warp_sum(sums.loss)};
    if (lane == 0) {
      p.pieces[row * pieces] = sums;
      tokens += sums.tokens;
      rows += sums.tokens > 0 ? 1.0 : 0.0;
      if (p.batch.cu_seqlens != nullptr && !is_sound_row(p.batch, row)) unsound += 1.0;
    }
  }
  const double all_tokens = block_sum(tokens, scratch);
  const double all_rows = block_sum(rows, scratch);
  const RowCounts batch = {all_tokens, all_rows};
  // cu_seqlens cannot be looked at before the launch without a wait; what a CPU refuses is a NaN here.
  const double poison = block_sum(unsound, scratch) > 0 ? nan("") : 0.0;

  double loss = poison;
  if (lane == 0) {
    for (int64_t row = warp; row < num_rows; row += kWarpsPerBlock) {
      const RowSums sums = p.pieces[row * pieces];
      const double scale = row_scale(p.aggregation, batch, sums.tokens);
      p.row_scale[row] = scale;
      loss += scale * sums.loss;
    }
  }
  loss = block_sum(loss, scratch);

  StatSums<double> units = no_sums<double>();
  for (int64_t i = threadIdx.x; i < p.tiling.units; i += kBlockThreads) add_sums(units, p.units[i]);
  StatSums<double> total = block_sums(units, stat_scratch);
  if (threadIdx.x == 0) {
    total.sum[kNonfinite] += poison;
    finish_stats(total, p.method, p.clip_bounds, p.stats);
    *static_cast<S*>(p.loss) = static_cast<S>(loss);
  }
}

}  // namespace maspo
