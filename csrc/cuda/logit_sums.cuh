// What a block adds up of a row of logits: each thread's sums, and those over the threads.
#pragma once

#include "core/logits.h"
#include "cuda/reduce.cuh"

namespace maspo {

// Of float32: in float64 from the threads on, whose own roundings are therefore all that counts.
template <class S>
struct ThreadLogits {
  LogitSums<S> sums = no_logits<S>();

  __device__ __forceinline__ void raise(S max, S inv_temperature) { raise_max(sums, max, inv_temperature); }
  __device__ __forceinline__ void add(const LogitSums<S>& of_step) {  // with the same maximum
    sums.sum += of_step.sum;
    sums.weighted += of_step.weighted;
  }
};

// total + lost grows by value, and no digit of it is lost (Knuth's TwoSum).
__device__ __forceinline__ void add_exactly(double& total, double& lost, double value) {
  const double sum = total + value, of_value = sum - total;
  lost += (total - (sum - of_value)) + (value - of_value);
  total = sum;
}

// Of float64: with what the additions lost beside the sums. Every one to a sum with a confident word's 1 in it loses up to
// half an eps, and over a large vocabulary those add up to several.
template <>
struct ThreadLogits<double> {
  LogitSums<double> sums = no_logits<double>(), lost = no_logits<double>();

  __device__ __forceinline__ void raise(double max, double inv_temperature) {
    lost.max = sums.max;  // as it is anyway: the compiler sees that both have the same factor
    raise_max(lost, max, inv_temperature);
    raise_max(sums, max, inv_temperature);
  }
  __device__ __forceinline__ void add(const LogitSums<double>& of_step) {
    add_exactly(sums.sum, lost.sum, of_step.sum);
    add_exactly(sums.weighted, lost.weighted, of_step.weighted);
  }
};

// Over the threads of a block, in a fixed order; known to all of them.
template <int kWarps>
__device__ __forceinline__ LogitSums<double> block_logits(const ThreadLogits<float>& of_thread, double inv_temperature,
                                                          double* scratch) {
  LogitSums<double> s = {of_thread.sums.max, of_thread.sums.sum, of_thread.sums.weighted};
  raise_max(s, block_max<kWarps>(s.max, scratch), inv_temperature);
  return {s.max, block_sum<kWarps>(s.sum, scratch), block_sum<kWarps>(s.weighted, scratch)};
}

// The sum of value + lost, rounded once. Multiples of 2^-20 below 2^32 add up exactly; what is left of the values is so
// small that its roundings are nothing.
template <int kWarps>
__device__ __forceinline__ double exact_block_sum(double value, double lost, double* scratch) {
  constexpr double kLastDigit = 1.5 * 4294967296.0;  // 1.5 * 2^32, whose last digit is worth 2^-20
  const double coarse = (value + kLastDigit) - kLastDigit;
  const double of_coarse = block_sum<kWarps>(coarse, scratch);
  return of_coarse + block_sum<kWarps>((value - coarse) + lost, scratch);
}

template <int kWarps>
__device__ __forceinline__ LogitSums<double> block_logits(ThreadLogits<double> s, double inv_temperature,
                                                          double* scratch) {
  s.raise(block_max<kWarps>(s.sums.max, scratch), inv_temperature);
  return {s.sums.max, exact_block_sum<kWarps>(s.sums.sum, s.lost.sum, scratch),
          exact_block_sum<kWarps>(s.sums.weighted, s.lost.weighted, scratch)};
}

}  // namespace maspo
