// From the sums of pieces and units to loss, statistics and row scales: done by the forward kernel's block that comes last.
// What runs here once has to be fetched as code first, often from far away: so it is short, and its loops are not unrolled
// beyond what keeps loads on their way.
#pragma once

#include "cuda/reduce.cuh"

namespace maspo {

// ---- statistics: a lane has one of the numbers of StatSums, in their order

constexpr int kUnitSums = kNumSums + kMaxMethodSums + 2;
constexpr int kLeast = kNumSums + kMaxMethodSums, kMost = kLeast + 1;  // the lanes of ratio_min and ratio_max
static_assert(sizeof(StatSums<double>) == kUnitSums * sizeof(double) && kUnitSums <= kWarp, "one number per lane");

__device__ __forceinline__ double nothing_of_lane(int lane) {
  return lane == kLeast ? Limits<double>::max : lane == kMost ? -1.0 : 0.0;
}

__device__ __forceinline__ double combined(int lane, double a, double b) {
  if (lane == kLeast) return b < a ? b : a;
  if (lane == kMost) return b > a ? b : a;
  return a + b;
}

// Over the block's warps, known to the lanes of the first. A barrier must come before scratch is written again.
template <int kBlockWarps>
__device__ __forceinline__ double over_block(double of_warp, double* scratch) {
  const int lane = threadIdx.x % kWarp;
  if (lane < kUnitSums) scratch[threadIdx.x / kWarp * kUnitSums + lane] = of_warp;
  __syncthreads();
  double total = nothing_of_lane(lane);
  if (threadIdx.x < kUnitSums) {
#pragma unroll 1
    for (int i = 0; i < kBlockWarps; ++i) total = combined(lane, total, scratch[i * kUnitSums + lane]);
  }
  return total;
}

// Units that a warp reads at a time: one after the other, each would be waited for.
constexpr int kUnitsAtOnce = 8;

template <int kBlockWarps>
__device__ __forceinline__ double sum_units(const LossParams& p) {
  const int lane = threadIdx.x % kWarp;
  double total = nothing_of_lane(lane);
#pragma unroll 1
  for (int64_t first = threadIdx.x / kWarp; first < p.tiling.units; first += kUnitsAtOnce * kBlockWarps) {
    double unit[kUnitsAtOnce];
#pragma unroll
    for (int k = 0; k < kUnitsAtOnce; ++k) {
      const int64_t i = first + k * kBlockWarps;
      unit[k] = nothing_of_lane(lane);
      if (i < p.tiling.units && lane < kUnitSums) unit[k] = reinterpret_cast<const double*>(p.units + i)[lane];
    }
#pragma unroll
    for (int k = 0; k < kUnitsAtOnce; ++k) total = combined(lane, total, unit[k]);
  }
  return total;
}

// ---- rows

// Rows that a thread has in hand at a time: their loads are on their way together.
constexpr int kRowsAtOnce = 4;

// Calls each(rows, count) with the rows that this thread of `threads` has: count of them at rows, rows + threads, ...; and as
// often in every thread, since those of a warp exchange values in it.
template <class Each>
__device__ __forceinline__ void for_rows(int64_t num_rows, int thread, int threads, Each each) {
#pragma unroll 1
  for (int64_t first = 0; first < num_rows; first += int64_t{threads} * kRowsAtOnce) {
    const int64_t row = first + thread;
    const int64_t left = row < num_rows ? ceil_div(num_rows - row, threads) : 0;
    each(row, static_cast<int>(left < kRowsAtOnce ? left : kRowsAtOnce));
  }
}

// So many lanes of a warp for each row that a row's pieces are read together.
__device__ __forceinline__ int lanes_of_row(int64_t pieces) {
  int lanes = 1;
  while (lanes < kWarp && lanes < pieces) lanes *= 2;
  return lanes;
}

struct BatchRows {
  double nonempty;
  double unsound;  // those that cu_seqlens has wrong
};

// A row's sums gather in its first piece.
template <int kBlockWarps>
__device__ __forceinline__ BatchRows sum_rows(const LossParams& p, double* scratch) {
  const int64_t pieces = p.tiling.pieces_per_row;
  const int lanes = lanes_of_row(pieces), lane = threadIdx.x % lanes, rows_at_once = kBlockWarps * kWarp / lanes;
  double nonempty = 0, unsound = 0;
  for_rows(p.batch.rows, threadIdx.x / lanes, rows_at_once, [&](int64_t row, int count) {
    RowSums sums[kRowsAtOnce] = {};
#pragma unroll 1
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
#pragma unroll 1
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        sums[k].tokens += __shfl_xor_sync(kAllLanes, sums[k].tokens, offset);
        sums[k].loss += __shfl_xor_sync(kAllLanes, sums[k].loss, offset);
      }
      if (lane != 0 || k >= count) continue;
      const int64_t this_row = row + int64_t{k} * rows_at_once;
      p.pieces[this_row * pieces] = sums[k];
      nonempty += sums[k].tokens > 0 ? 1.0 : 0.0;
      if (p.batch.cu_seqlens != nullptr && !is_sound_row(p.batch, this_row)) unsound += 1.0;
    }
  });
  // The barriers in these also show every thread what the others have written.
  const double all = block_sum<kBlockWarps>(nonempty, scratch);
  return {all, block_sum<kBlockWarps>(unsound, scratch)};
}

// The rows' scales, and the loss; known to all threads.
template <int kBlockWarps>
__device__ __forceinline__ double scale_rows(const LossParams& p, double of_batch, double* scratch) {
  constexpr int kThreads = kBlockWarps * kWarp;
  double loss = 0;
  for_rows(p.batch.rows, threadIdx.x, kThreads, [&](int64_t row, int count) {
    RowSums sums[kRowsAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (k < count) sums[k] = p.pieces[(row + k * kThreads) * p.tiling.pieces_per_row];
    }
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      if (k >= count) continue;
      const double scale = row_scale(p.aggregation, of_batch, sums[k].tokens);
      p.row_scale[row + k * kThreads] = scale;
      loss += scale * sums[k].loss;
    }
  });
  return block_sum<kBlockWarps>(loss, scratch);
}

template <class S, template <class> class Hyper>
__device__ __forceinline__ void finish_forward(const LossParams& p, double* scratch) {
  constexpr int kBlockWarps = kWarps<S>;
  StatSums<double>& total = *reinterpret_cast<StatSums<double>*>(scratch);
  const double of_lane = over_block<kBlockWarps>(sum_units<kBlockWarps>(p), scratch);
  __syncthreads();
  if (threadIdx.x < kUnitSums) scratch[threadIdx.x] = of_lane;
  __syncthreads();
  double* const free_scratch = scratch + kUnitSums;
  const BatchRows rows = sum_rows<kBlockWarps>(p, free_scratch);
  // cu_seqlens cannot be looked at before the launch without a wait; what a CPU refuses is a NaN here.
  const double poison = rows.unsound > 0 ? nan("") : 0.0;
  const double of_batch = batch_scale(p.aggregation, {total.sum[kTokens], rows.nonempty});
  const double loss = scale_rows<kBlockWarps>(p, of_batch, free_scratch) + poison;
  if (threadIdx.x == 0) {
    total.sum[kNonfinite] += poison;
    finish_stats(total, p.clip_bounds, p.stats, Hyper<double>::finish);
    *static_cast<S*>(p.loss) = static_cast<S>(loss);
  }
}

}  // namespace maspo
