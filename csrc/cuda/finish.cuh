// From the sums of pieces and units to loss, statistics and row scales: done by the forward kernel's block that comes last.
// What runs here once has to be fetched as code first, often from far away: so it is short, and its loops are not unrolled
// beyond what keeps loads on their way.
#pragma once

#include "cuda/load.cuh"

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
__device__ __forceinline__ double over_block(double of_warp, double* scratch) {
  const int lane = threadIdx.x % kWarp;
  if (lane < kUnitSums) scratch[threadIdx.x / kWarp * kUnitSums + lane] = of_warp;
  __syncthreads();
  double total = nothing_of_lane(lane);
  if (threadIdx.x < kUnitSums) {
    for (int i = 0; i < warps_of_block(); ++i) total = combined(lane, total, scratch[i * kUnitSums + lane]);
  }
  return total;
}

// Units that a warp reads at a time: one after the other, each would be waited for.
constexpr int kUnitsAtOnce = 8;

__device__ __forceinline__ double sum_units(const LossParams& p, const Cut& cut) {
  const int lane = threadIdx.x % kWarp, warps = warps_of_block();
  double total = nothing_of_lane(lane);
#pragma unroll 1
  for (int64_t first = threadIdx.x / kWarp; first < cut.blocks; first += kUnitsAtOnce * warps) {
    double unit[kUnitsAtOnce];
#pragma unroll
    for (int k = 0; k < kUnitsAtOnce; ++k) {
      const int64_t i = first + k * warps;
      unit[k] = nothing_of_lane(lane);
      if (i < cut.blocks && lane < kUnitSums) unit[k] = reinterpret_cast<const double*>(p.units + i)[lane];
    }
#pragma unroll
    for (int k = 0; k < kUnitsAtOnce; ++k) total = combined(lane, total, unit[k]);
  }
  return total;
}

// ---- rows

// Over the batch's rows.
enum RowTotal {
  kNonempty,  // those with tokens
  kUnsound,   // those that cu_seqlens has wrong
  kRowLoss,   // their losses, divided by their tokens where the mode is kSeqMeanTokenMean
  kRowTotals
};

// Rows that a thread has in hand at a time: their loads are on their way together.
constexpr int kRowsAtOnce = 4;

// So many lanes of a warp for each row that a row's pieces are read together.
__device__ __forceinline__ int lanes_of_row(int64_t pieces) {
  int lanes = 1;
  while (lanes < kWarp && lanes < pieces) lanes *= 2;
  return lanes;
}

// Adds what this thread has of each to totals, and leaves the tokens of the rows in p.row_scale.
__device__ __forceinline__ void sum_rows(const LossParams& p, const Cut& cut, double (&totals)[kRowTotals]) {
  const int64_t most = most_pieces_of_row(cut);
  const int lanes = lanes_of_row(most), lane = threadIdx.x % lanes, rows_at_once = blockDim.x / lanes;
#pragma unroll 1
  for (int64_t first = 0; first < p.batch.rows; first += int64_t{rows_at_once} * kRowsAtOnce) {
    RowSums sums[kRowsAtOnce] = {};
    Pieces pieces[kRowsAtOnce];
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; ++k) {
      const int64_t row = first + threadIdx.x / lanes + int64_t{k} * rows_at_once;
      pieces[k] = row < p.batch.rows ? pieces_of_row(cut, row) : Pieces{0, 0};
    }
#pragma unroll 1
    for (int64_t i = lane; i < most; i += lanes) {
      RowSums piece[kRowsAtOnce] = {};
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k) {
        if (i < pieces[k].count) piece[k] = p.pieces[pieces[k].first + i];
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
      if (lane != 0 || pieces[k].count == 0) continue;
      const int64_t row = first + threadIdx.x / lanes + int64_t{k} * rows_at_once;
      p.row_scale[row] = sums[k].tokens;
      totals[kNonempty] += sums[k].tokens > 0 ? 1.0 : 0.0;
      if (p.batch.cu_seqlens != nullptr && !is_sound_row(p.batch, row)) totals[kUnsound] += 1.0;
      totals[kRowLoss] += row_scale(p.aggregation, 1.0, sums[k].tokens) * sums[k].loss;
    }
  }
}

__device__ __forceinline__ void scale_rows(const LossParams& p, double of_batch) {
#pragma unroll 4
  for (int64_t row = threadIdx.x; row < p.batch.rows; row += blockDim.x) {
    p.row_scale[row] = row_scale(p.aggregation, of_batch, p.row_scale[row]);
  }
}

template <class S, template <class> class Hyper>
__device__ __forceinline__ void finish_forward(const LossParams& p, const Cut& cut, double* scratch) {
  const int lane = threadIdx.x % kWarp;
  const double of_units = over_block(sum_units(p, cut), scratch);
  double totals[kRowTotals] = {}, of_warp = 0;
  sum_rows(p, cut, totals);
#pragma unroll
  for (int i = 0; i < kRowTotals; ++i) {
    const double total = warp_sum(totals[i]);
    of_warp = lane == i ? total : of_warp;
  }
  __syncthreads();  // before scratch is written again
  const double of_rows = over_block(of_warp, scratch);
  __syncthreads();
  if (threadIdx.x < kUnitSums) scratch[lane] = of_units;
  if (threadIdx.x < kRowTotals) scratch[kUnitSums + lane] = of_rows;
  __syncthreads();
  StatSums<double>& sums = *reinterpret_cast<StatSums<double>*>(scratch);
  const double* rows = scratch + kUnitSums;
  const double of_batch = batch_scale(p.aggregation, {sums.sum[kTokens], rows[kNonempty]});
  scale_rows(p, of_batch);
  if (threadIdx.x == 0) {
    // cu_seqlens cannot be looked at before the launch without a wait; what a CPU refuses is a NaN here.
    const double poison = rows[kUnsound] > 0 ? nan("") : 0.0;
    // A batch without tokens has loss 0, whatever they would be divided by.
    const double loss = rows[kNonempty] == 0 && rows[kRowLoss] == 0 ? 0.0 : of_batch * rows[kRowLoss];
    *static_cast<S*>(p.loss) = static_cast<S>(loss + poison);
    sums.sum[kNonfinite] += poison;
    finish_stats(sums, p.clip_bounds, p.stats, Hyper<double>::finish);
  }
}

}  // namespace maspo
