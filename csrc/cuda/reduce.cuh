// Sums over the lanes of a warp and over the warps of a block, in a fixed order.
#pragma once

#include "core/params.h"

namespace maspo {

constexpr int kWarp = 32;
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
template <class S>
__device__ __forceinline__ StatSums<double> warp_sums(const StatSums<S>& s) {
  StatSums<double> total;
#pragma unroll
  for (int i = 0; i < kNumSums; ++i) total.sum[i] = warp_sum(static_cast<double>(s.sum[i]));
  total.ratio_min = warp_min(static_cast<double>(s.ratio_min));
  total.ratio_max = -warp_min(-static_cast<double>(s.ratio_max));
  return total;
}

}  // namespace maspo
