// From the sums of the pieces to loss, statistics and row scales: one block, after the forward kernel on the same stream.
#pragma once

#include "cuda/reduce.cuh"

namespace maspo {

constexpr int kFinishWarps = 16;

// The sum over the block's threads, known to all of them. `scratch` is free again after the call.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const double of_warp = warp_sum(value);
  if (lane == 0) scratch[warp] = of_warp;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < kFinishWarps; ++i) total += scratch[i];
  __syncthreads();  // before the next call writes scratch
  return total;
}

template <class S>
__global__ void __launch_bounds__(kFinishWarps* kWarp) finish_kernel(LossParams p) {
  __shared__ double scratch[kFinishWarps];
  __shared__ StatSums<double> warp_totals[kFinishWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t pieces = p.tiling.pieces_per_row;

  // Rows: one warp each. The row's sums gather in its first piece, which only that warp's first lane touches again.
  double tokens = 0, rows = 0;
  for (int64_t row = warp; row < p.rows; row += kFinishWarps) {
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
    }
  }
  const double all_tokens = block_sum(tokens, scratch);
  const double all_rows = block_sum(rows, scratch);
  const RowCounts batch = {all_tokens, all_rows};

  double loss = 0;
  if (lane == 0) {
    for (int64_t row = warp; row < p.rows; row += kFinishWarps) {
      const RowSums sums = p.pieces[row * pieces];
      const double scale = row_scale(p.aggregation, batch, sums.tokens);
      p.row_scale[row] = scale;
      loss += scale * sums.loss;
    }
  }
  loss = block_sum(loss, scratch);

  StatSums<double> units = no_sums<double>();
  for (int64_t i = threadIdx.x; i < p.tiling.units; i += kFinishWarps * kWarp) add_sums(units, p.units[i]);
  const StatSums<double> of_warp = warp_sums(units);
  if (lane == 0) warp_totals[warp] = of_warp;
  __syncthreads();
  if (threadIdx.x == 0) {
    StatSums<double> total = warp_totals[0];
    for (int i = 1; i < kFinishWarps; ++i) add_sums(total, warp_totals[i]);
    finish_stats(total, p.stats);
    *static_cast<S*>(p.loss) = static_cast<S>(loss);
  }
}

}  // namespace maspo
