// Sums over the lanes of a warp and over the warps of a block, in a fixed order.
#pragma once

#include "cuda/tiling.h"

// A shared array. A macro, since the emulation in tests/ makes it otherwise.
#if !defined(MASPO_SHARED)
#define MASPO_SHARED(T, name, count) __shared__ T name[count]
#endif

namespace maspo {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

__device__ __forceinline__ double warp_min(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other < value ? other : value;
  }
  return value;
}

// Of kCount values of each lane, a power of two, the sums over kCount neighbouring lanes: lane l gets that of value l % kCount.
// Half as many values are left after each exchange, so that 16 of them take 15 shuffles, where one sum after the other takes 4
// each. What other lanes of the warp have is for the caller to add.
template <int kCount, class S>
__device__ __forceinline__ S warp_sums(S (&value)[kCount]) {
  if constexpr (kCount == 1) {
    return value[0];
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (threadIdx.x & kHalf) != 0;
    S half[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const S kept = upper ? value[i + kHalf] : value[i], sent = upper ? value[i] : value[i + kHalf];
      half[i] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
    }
    return warp_sums(half);
  }
}

// What the warps of a block have, combined in their order and known to all threads.
template <int kWarps, class Combine>
__device__ __forceinline__ double over_warps(double of_warp, double total, double* scratch, Combine combine) {
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) total = combine(total, scratch[i]);
  __syncthreads();  // before the next call writes scratch
  return total;
}

// The sum over the block's threads, known to all of them.
template <int kWarps>
__device__ __forceinline__ double block_sum(double value, double* scratch) {
  return over_warps<kWarps>(warp_sum(value), 0.0, scratch, [](double a, double b) { return a + b; });
}

// The same for the maximum; a NaN may get lost.
template <int kWarps>
__device__ __forceinline__ double block_max(double value, double* scratch) {
  return over_warps<kWarps>(-warp_min(-value), -Limits<double>::max, scratch,
                            [](double a, double b) { return at_least(a, b); });
}

}  // namespace maspo
