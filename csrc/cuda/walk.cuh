// A warp's way through the tokens of a piece: parts of some steps, and four neighbours for each lane.
#pragma once

#include "cuda/tiling.h"

namespace maspo {

__device__ __forceinline__ int warps_of_block() { return blockDim.x / kWarp; }
__device__ __forceinline__ int64_t this_warp() {
  return static_cast<int64_t>(blockIdx.x) * warps_of_block() + threadIdx.x / kWarp;
}

// Calls each(part) for parts of kMaxSteps steps of a piece.
template <class Each>
__device__ __forceinline__ void for_each_part(const Span& span, Each each) {
  for (int64_t first = span.first; first < span.last; first += kMaxSteps * kStepTokens) {
    each(Span{span.row, first, bounded(span.last, 0, first + kMaxSteps * kStepTokens), span.start});
  }
}

// Calls each(col, count) for this lane's steps through a piece, as often in every lane: count of the kLane tokens from col on
// exist, which may be none.
template <class Each>
__device__ __forceinline__ void for_each_four(const Span& span, Each each) {
  for (int64_t first = span.first; first < span.last; first += kStepTokens) {
    const int64_t col = first + threadIdx.x % kWarp * kLane;
    each(col, static_cast<int>(bounded(span.last - col, 0, kLane)));
  }
}

}  // namespace maspo
