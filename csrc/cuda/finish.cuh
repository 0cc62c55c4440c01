// From the sums of the pieces to loss, statistics and row scales: done by the forward kernel's block that comes last.
#pragma once

#include "cuda/reduce.cuh"

namespace maspo {

// Rows that a thread has in hand at a time: their loads are on their way together, since one after the other each would be
// waited for.
constexpr int kRowsAtOnce = 4;

// Calls each(rows, count) with the rows that this thread of `threads` has: count of them at rows, rows + threads, ...; and as
// often in every thread, since those of a warp exchange values in it.
template <class Each>
__device__ __forceinline__ void for_rows(int64_t num_rows, int thread, int threads, Each each) {
  for (int64_t first = 0; first < num_rows; first += int64_t{threads} * kRowsAtOnce) {
    const int64_t row = first + thread;
    const int64_t left = row < num_rows ? ceil_div(num_rows - row, threads) : 0;
    each(row, static_cast<int>(left < kRowsAtOnce ? left : kRowsAtOnce));
  }
}

// So many lanes of a warp for each row that every thread has work, if that can be.
__device__ __forceinline__ int lanes_of_row(int64_t num_rows) {
  int lanes = kWarp;
  while (lanes > 1 && lanes * num_rows > kBlockThreads) lanes /= 2;
  return lanes;
}

struct BatchSums {
  RowCounts counts;
  double unsound;  // rows that cu_seqlens has wrong
};

// A row's sums gather in its first piece.
__device__ __forceinline__ BatchSums sum_rows(const LossParams& p, double* scratch) {
  const int64_t pieces = p.tiling.pieces_per_row;
  const int lanes = lanes_of_row(p.batch.rows), lane = threadIdx.x % lanes, rows_at_once = kBlockThreads / lanes;
  double tokens = 0, rows = 0, unsound = 0;
  for_rows(p.batch.rows, threadIdx.x / lanes, rows_at_once, [&](int64_t row, int count) {
    RowSums sums[kRowsAtOnce] = {};
#pragma unroll 1  // more loads at a time would take registers that the pass needs
    for (int64_t i = lane; i < pieces; i += lanes) {
      RowSums piece[kRowsAtOnce] = {};
      const RowSums* of_row = p.pieces + row * pieces + i;
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (k < count) piece[k] = *of_row;
        of_row += rows_at_once * pieces;
      }
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        sums[k].tokens += piece[k].tokens;
        sums[k].loss += piece[k].loss;
      }
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        sums[k].tokens += __shfl_xor_sync(kAllLanes, sums[k].tokens, offset);
        sums[k].loss += __shfl_xor_sync(kAllLanes, sums[k].loss, offset);
      }
      if (lane != 0 || k >= count) continue;
      const int64_t this_row = row + int64_t{k} * rows_at_once;
      p.pieces[this_row * pieces] = sums[k];
      tokens += sums[k].tokens;
      rows += sums[k].tokens > 0 ? 1.0 : 0.0;
      if (p.batch.cu_seqlens != nullptr && !is_sound_row(p.batch, this_row)) unsound += 1.0;
    }
  });
  // The barriers in these also show every thread what the others have written.
  const double all_tokens = block_sum(tokens, scratch), all_rows = block_sum(rows, scratch);
  return {{all_tokens, all_rows}, block_sum(unsound, scratch)};
}

// The rows' scales, and the loss; known to all threads.
__device__ __forceinline__ double scale_rows(const LossParams& p, const RowCounts& counts, double* scratch) {
  double loss = 0;
  for_rows(p.batch.rows, threadIdx.x, kBlockThreads, [&](int64_t row, int count) {
    RowSums sums[kRowsAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (k < count) sums[k] = p.pieces[(row + k * kBlockThreads) * p.tiling.pieces_per_row];
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (k >= count) continue;
      const double scale = row_scale(p.aggregation, counts, sums[k].tokens);
      p.row_scale[row + k * kBlockThreads] = scale;
      loss += scale * sums[k].loss;
    }
  });
  return block_sum(loss, scratch);
}

template <class S>
__device__ __forceinline__ void finish_forward(const LossParams& p, double* scratch, StatSums<double>* stat_scratch) {
  const BatchSums batch = sum_rows(p, scratch);
  // cu_seqlens cannot be looked at before the launch without a wait; what a CPU refuses is a NaN here.
  const double poison = batch.unsound > 0 ? nan("") : 0.0;
  const double loss = scale_rows(p, batch.counts, scratch) + poison;

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
