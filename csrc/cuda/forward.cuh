// The forward pass: one warp per stretch of steps, or a block's warps in turn, and one block per unit. The block that comes
// last adds everything up, so that one launch does it all.
#pragma once

#include "cuda/finish.cuh"
#include "cuda/groups.cuh"

namespace maspo {

// Whether this block is the last one of the grid to come here; what every other block wrote before is then visible to all
// threads of this one. To be called after a barrier that follows what the block's other threads wrote. The counter is 0 again
// afterwards, so that the next launch finds it so.
__device__ __forceinline__ bool is_last_block(unsigned* counter, bool* scratch) {
  if (threadIdx.x == 0) {
    __threadfence();  // release: the block's results, before the ticket that announces them
    *scratch = atomicAdd(counter, 1u) == gridDim.x - 1;
    __threadfence();  // acquire: the others' tickets, before their results
    if (*scratch) atomicAdd(counter, 0u - gridDim.x);
  }
  __syncthreads();
  return *scratch;
}

// A part's sums over the warp: those of StatSums in the lanes of their order, that of the loss behind them.
constexpr int kLossLane = kNumSums + kMaxMethodSums;
constexpr int kPartSums = kWarp / 2;
static_assert(kLossLane < kPartSums, "a lane for each sum");

template <class S, class Hyper>
__device__ __forceinline__ double part_total(const PieceSums<S, Hyper>& sums) {
  S value[kPartSums] = {};
#pragma unroll
  for (int i = 0; i < kNumSums; ++i) value[i] = sums.stats.sum[i];
#pragma unroll
  for (int i = 0; i < kSumsOf<Hyper>; ++i) value[kNumSums + i] = sums.stats.method[i];
  value[kLossLane] = sums.loss;
  const S of_half = warp_sums(value);
  return static_cast<double>(of_half + __shfl_xor_sync(kAllLanes, of_half, kPartSums));
}

// The sums of tokens and loss over the warp; those of the lanes are 0 again.
template <class S, class Hyper>
__device__ __forceinline__ RowSums take_row_sums(PieceSums<S, Hyper>& sums) {
  S both[2] = {sums.stats.sum[kTokens], sums.loss};
  sums.stats.sum[kTokens] = sums.loss = 0;
  S either = warp_sums(both);
#pragma unroll
  for (int offset = 2; offset < kWarp; offset *= 2) either += __shfl_xor_sync(kAllLanes, either, offset);
  return {static_cast<double>(__shfl_sync(kAllLanes, either, 0)), static_cast<double>(__shfl_sync(kAllLanes, either, 1))};
}

// What a warp leaves of a piece; its part of what the block leaves.
__device__ __forceinline__ double end_piece(const LossParams& p, int64_t piece, int64_t row, bool is_whole_row,
                                            const RowSums& sums) {
  const int lane = threadIdx.x % kWarp;
  if (is_whole_row) {
    if (lane == 0) p.row_scale[row] = own_scale(p, sums);
    return row_number(p, row, sums, lane);
  }
  if (lane == 0) p.pieces[piece] = sums;
  return 0;
}

// What a block leaves, of which each warp has a part; and all that is left to do, where it is the last one.
template <template <class> class Hyper, class S, class AnyCut>
__device__ __forceinline__ void end_block(const LossParams& p, const AnyCut& cut, const StatSums<S, kSumsOf<Hyper<S>>>& stats,
                                          double of_warp, unsigned* counter, double* scratch, bool* is_last) {
  const int lane = threadIdx.x % kWarp;
  __syncthreads();  // shows the pieces to every warp
  of_warp = combined(lane, of_warp, sum_split_rows(p, cut, split_rows_of_block(p.batch, cut, blockIdx.x)));
  const double least = warp_min(static_cast<double>(stats.ratio_min));
  const double most = -warp_min(-static_cast<double>(stats.ratio_max));
  of_warp = lane == kLeast ? least : lane == kMost ? most : of_warp;
  const double of_block = over_block(of_warp, scratch);
  if (threadIdx.x < kUnitNumbers) unit_numbers(p, blockIdx.x)[threadIdx.x] = of_block;
  __syncthreads();
  if (is_last_block(counter, is_last)) finish_forward<S, Hyper>(p, cut, scratch);
}

template <template <class> class Hyper, class Steps>
__global__ void __launch_bounds__(kMostThreads<typename Steps::Number>, 1)
    forward_kernel(LossParams p, Cut cut, unsigned* counter) {
  using S = typename Steps::Number;
  MASPO_SHARED(double, scratch, kMostWarps<S> * kUnitNumbers);
  MASPO_SHARED(bool, is_last, 1);
  const int lane = threadIdx.x % kWarp;
  Steps steps(p);
  PieceSums<S, Hyper<S>> sums;
  double of_warp = nothing_of_lane(lane);
  for_each_piece(p.batch, cut, this_warp(), [&](int64_t piece, const Span& span, bool is_whole_row) {
    double of_piece = 0;
    for_each_part(span, [&](const Span& part) {
      steps.run(cut, part, sums);
      of_piece += part_total(sums);
      sums.begin_part();
    });
    if (lane < kLossLane) of_warp += of_piece;
    const RowSums row = {__shfl_sync(kAllLanes, of_piece, kTokens), __shfl_sync(kAllLanes, of_piece, kLossLane)};
    of_warp += end_piece(p, piece, span.row, is_whole_row, row);
  });
  end_block<Hyper>(p, cut, sums.stats, of_warp, counter, scratch, is_last);
}

// By GroupSteps. What a row is asked for is summed up by groups, and all else by as many of them as a part has steps.
template <template <class> class Hyper, class Format>
__global__ void __launch_bounds__(kMostThreads<float>, 1)
    forward_groups_kernel(LossParams p, GroupCut cut, unsigned* counter) {
  using S = typename Format::Arithmetic;
  MASPO_SHARED(double, scratch, kMostWarps<S> * kUnitNumbers);
  MASPO_SHARED(bool, is_last, 1);
  const int lane = threadIdx.x % kWarp;
  const bool is_whole_row = cut.of_row == 1;
  GroupSteps<Format, Hyper<S>> steps(p, cut);
  PieceSums<S, Hyper<S>> sums;
  double of_warp = nothing_of_lane(lane);
  const auto end_part = [&] {
    const double of_part = part_total(sums);
    if (lane < kLossLane) of_warp += of_part;
    sums.begin_part();
  };
  int groups = 0;
  steps.run(sums, [&](int64_t group) {
    const RowSums row = take_row_sums(sums);
    if (lane == kTokens) of_warp += row.tokens;
    of_warp += end_piece(p, group, group, is_whole_row, row);
    if (++groups % (kMaxSteps / kGroupSteps) == 0) end_part();
  });
  end_part();
  end_block<Hyper>(p, cut, sums.stats, of_warp, counter, scratch, is_last);
}

}  // namespace maspo
