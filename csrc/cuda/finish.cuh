// From the sums of pieces and units to loss, statistics and scales: done by the forward kernel's block that comes last.
// What runs here once has to be fetched as code first, often from far away: so it is short, and its loops are not unrolled
// beyond what keeps loads on their way.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

namespace maspo {

// ---- what blocks leave: a lane of a warp has one of UnitNumber

static_assert(kUnitNumbers <= kWarp, "a lane for each");

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
  if (lane < kUnitNumbers) scratch[threadIdx.x / kWarp * kUnitNumbers + lane] = of_warp;
  __syncthreads();
  double total = nothing_of_lane(lane);
  if (threadIdx.x < kUnitNumbers) {
    for (int i = 0; i < warps_of_block(); ++i) total = combined(lane, total, scratch[i * kUnitNumbers + lane]);
  }
  return total;
}

__device__ __forceinline__ double* unit_numbers(const LossParams& p, int64_t unit) {
  return reinterpret_cast<double*>(p.units) + unit * kUnitNumbers;
}

// What a thread reads at a time: one after the other, each would be waited for.
constexpr int kReadsAtOnce = 8;

__device__ __forceinline__ double sum_units(const LossParams& p, int64_t units) {
  const int lane = threadIdx.x % kWarp, warps = warps_of_block();
  double total = nothing_of_lane(lane);
#pragma unroll 1
  for (int64_t first = threadIdx.x / kWarp; first < units; first += kReadsAtOnce * warps) {
    double unit[kReadsAtOnce];
#pragma unroll
    for (int k = 0; k < kReadsAtOnce; ++k) {
      const int64_t i = first + k * warps;
      unit[k] = nothing_of_lane(lane);
      if (i < units && lane < kUnitNumbers) unit[k] = unit_numbers(p, i)[lane];
    }
#pragma unroll
    for (int k = 0; k < kReadsAtOnce; ++k) total = combined(lane, total, unit[k]);
  }
  return total;
}

// ---- rows

// What a row's scale has of its own.
__device__ __forceinline__ double own_scale(const LossParams& p, const RowSums& sums) {
  return row_scale(p.aggregation, 1.0, sums.tokens);
}

// What a row adds to kNonempty, kUnsound or kRowLoss.
__device__ __forceinline__ double row_number(const LossParams& p, int64_t row, const RowSums& sums, int which) {
  if (which == kNonempty) return sums.tokens > 0 ? 1.0 : 0.0;
  if (which == kUnsound) return p.batch.cu_seqlens != nullptr && !is_sound_row(p.batch, row) ? 1.0 : 0.0;
  return which == kRowLoss ? own_scale(p, sums) * sums.loss : 0.0;
}

// So many threads for each row, of a warp, that all have work if that can be.
__device__ __forceinline__ int lanes_of_row(int64_t rows) {
  int lanes = kWarp;
  while (lanes > 1 && lanes * rows > blockDim.x) lanes /= 2;
  return lanes;
}

// Of rows that no warp had as a whole: p.row_scale, and this warp's part of their numbers, in the lanes of these.
template <class AnyCut>
__device__ __forceinline__ double sum_split_rows(const LossParams& p, const AnyCut& cut, const SplitRows& split) {
  if (split.candidates == 0) return nothing_of_lane(threadIdx.x % kWarp);
  const int lane = threadIdx.x % kWarp, lanes = lanes_of_row(split.candidates), rows_at_once = blockDim.x / lanes;
  double numbers[kUnitNumbers - kNonempty] = {};
#pragma unroll 1
  for (int64_t first = 0; first < split.candidates; first += rows_at_once) {
    const int64_t row = split_row(p.batch, cut, split, first + threadIdx.x / lanes);
    const Pieces pieces = row >= 0 ? pieces_of_row(cut, row) : Pieces{0, 0};
    RowSums sums = {};
#pragma unroll 4
    for (int64_t i = lane % lanes; i < pieces.count; i += lanes) {
      const RowSums piece = p.pieces[pieces.first + i];
      sums.tokens += piece.tokens;
      sums.loss += piece.loss;
    }
#pragma unroll 1
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      sums.tokens += __shfl_xor_sync(kAllLanes, sums.tokens, offset);
      sums.loss += __shfl_xor_sync(kAllLanes, sums.loss, offset);
    }
    if (row < 0 || lane % lanes != 0) continue;
    p.row_scale[row] = own_scale(p, sums);
#pragma unroll
    for (int i = 0; i < kUnitNumbers - kNonempty; ++i) numbers[i] += row_number(p, row, sums, kNonempty + i);
  }
  double of_lane = nothing_of_lane(lane);
#pragma unroll
  for (int i = 0; i < kUnitNumbers - kNonempty; ++i) {
    const double total = warp_sum(numbers[i]);
    of_lane = lane == kNonempty + i ? total : of_lane;
  }
  return of_lane;
}

template <class S, template <class> class Hyper, class AnyCut>
__device__ __forceinline__ void finish_forward(const LossParams& p, const AnyCut& cut, double* scratch) {
  const int lane = threadIdx.x % kWarp;
  const double of_warp = combined(lane, sum_units(p, cut.blocks), sum_split_rows(p, cut, split_rows_of_grid(p.batch, cut)));
  const double of_batch = over_block(of_warp, scratch);
  if (threadIdx.x < kUnitNumbers) scratch[lane] = of_batch;  // where no other thread has anything to read
  __syncthreads();  // which shows one thread what the others have
  if (threadIdx.x != 0) return;
  StatSums<double>& sums = *reinterpret_cast<StatSums<double>*>(scratch);
  // cu_seqlens cannot be looked at before the launch without a wait; what a CPU refuses is a NaN here, in every gradient too.
  const double poison = scratch[kUnsound] > 0 ? nan("") : 0.0;
  const double scale = batch_scale(p.aggregation, {sums.sum[kTokens], scratch[kNonempty]}) + poison;
  *p.batch_scale = scale / scale_of_pass(p);
  // A batch without tokens has loss 0, whatever they would be divided by.
  const double loss = scratch[kNonempty] == 0 && scratch[kRowLoss] == 0 ? poison : scale * scratch[kRowLoss];
  *static_cast<S*>(p.loss) = static_cast<S>(loss);
  sums.sum[kNonfinite] += poison;
  finish_stats(sums, p.clip_bounds, p.stats, Hyper<double>::finish);
}

}  // namespace maspo
