// Sums over the lanes of a warp and over the warps of a block, in a fixed order.
#pragma once

#include "cuda/tiling.h"

// A shared array. A macro, since the emulation in tests/ makes it otherwise.
#if !defined(MASPO_SHARED)
#define MASPO_SHARED(T, name, count) __shared__ T name[count]
#endif

namespace maspo {

constexpr int kWarp = 32;
constexpr int kBlockThreads = kWarpsPerBlock * kWarp;

// The piece of this thread's warp; the last block's warps may have none.
__device__ __forceinline__ int64_t piece_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}
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

// Every lane gets the warp's total.
template <class S, int kMethodSums>
__device__ __forceinline__ StatSums<double> warp_sums(const StatSums<S, kMethodSums>& s) {
  StatSums<double> total = no_sums<double>();
#pragma unroll
  for (int i = 0; i < kNumSums; ++i) total.sum[i] = warp_sum(static_cast<double>(s.sum[i]));
#pragma unroll
  for (int i = 0; i < kMethodSums; ++i) total.method[i] = warp_sum(static_cast<double>(s.method[i]));
  total.ratio_min = warp_min(static_cast<double>(s.ratio_min));
  total.ratio_max = -warp_min(-static_cast<double>(s.ratio_max));
  return total;
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
template <int kWarps = kWarpsPerBlock>
__device__ __forceinline__ double block_sum(double value, double* scratch) {
  return over_warps<kWarps>(warp_sum(value), 0.0, scratch, [](double a, double b) { return a + b; });
}

// The same for the maximum of values that are no NaN.
template <int kWarps = kWarpsPerBlock>
__device__ __forceinline__ double block_max(double value, double* scratch) {
  return over_warps<kWarps>(-warp_min(-value), -Limits<double>::max, scratch,
                            [](double a, double b) { return at_least(a, b); });
}

// All sums of a pass; known to the block's first thread only. A barrier must come before scratch is written again.
template <class S, int kMethodSums>
__device__ __forceinline__ StatSums<double> block_sums(const StatSums<S, kMethodSums>& s, StatSums<double>* scratch) {
  const StatSums<double> of_warp = warp_sums(s);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  StatSums<double> total = no_sums<double>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarpsPerBlock; ++i) add_sums(total, scratch[i]);
  }
  return total;
}

}  // namespace maspo
