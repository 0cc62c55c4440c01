// What the maths needs from the compiler, and nothing else: the same headers go through g++, nvcc and NVRTC.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define MASPO_HD static __host__ __device__ __forceinline__
#else
#define MASPO_HD static inline __attribute__((always_inline))
#endif

#if !defined(__CUDACC_RTC__)
#include <math.h>
#include <stdint.h>
#else
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uintptr_t = unsigned long long;
#endif

// Defined by the emulation, too, whose models of a GPU's instructions stand in for that header.
#if defined(__CUDA_ARCH__)
#define MASPO_GPU_ARITHMETIC
#endif
#if defined(MASPO_GPU_ARITHMETIC)
#include "core/gpu_arithmetic.h"
#endif

namespace maspo {

// The maths is written once over a value type V: float or double, or a vector of them (csrc/cpu/vec.h), for which the
// same functions exist. `Scalar<V>::type` is the type of one lane.
template <class V>
struct Scalar {
  using type = V;
};
template <class V>
using scalar_t = typename Scalar<V>::type;
// What comparing two values gives: bool, or a register of them.
template <class V>
using flag_t = decltype(V() < V());

MASPO_HD float exp_of(float v) { return ::expf(v); }
MASPO_HD double exp_of(double v) { return ::exp(v); }
MASPO_HD double sqrt_of(double v) { return ::sqrt(v); }
MASPO_HD float sqrt_of(float v) {
#if defined(MASPO_GPU_ARITHMETIC)
  return gpu::root(v);
#else
  return ::sqrtf(v);
#endif
}
template <class V>
MASPO_HD V quotient(V a, V b) {
  return a / b;
}
#if defined(MASPO_GPU_ARITHMETIC)
template <>
__device__ __forceinline__ float quotient(float a, float b) {
  return gpu::quotient(a, b);
}
#endif

MASPO_HD float select(bool condition, float yes, float no) { return condition ? yes : no; }
MASPO_HD double select(bool condition, double yes, double no) { return condition ? yes : no; }

// The same where more is known of the value, which a NaN may be instead: a vector's exp has less to do.
template <class V>
MASPO_HD V exp_of_at_most_80(V v) {
  return exp_of(v);
}
template <class V>
MASPO_HD V exp_of_within_80(V v) {
  return exp_of(v);
}
// The same as exp_of_at_most_80, for what weighs a loss: on a GPU with an error of the exponent's last digit, which for a
// ratio would be too much.
template <class V>
MASPO_HD V weight_exp(V v) {
  return exp_of_at_most_80(v);
}
#if defined(MASPO_GPU_ARITHMETIC)
template <>
__device__ __forceinline__ float weight_exp(float v) {
  return gpu::power_of_2(v * 1.44269504f);
}
#endif

template <class S>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float max = 3.402823466e+38f;
};
template <>
struct Limits<double> {
  static constexpr double max = 1.7976931348623157e+308;
  MASPO_HD double infinity() {
#if defined(__CUDA_ARCH__)
    return __longlong_as_double(0x7ff0000000000000LL);
#else
    return __builtin_inf();
#endif
  }
};
MASPO_HD double not_a_number() { return Limits<double>::infinity() - Limits<double>::infinity(); }

// The type of a sum over many values V, or of their least or largest.
template <class V>
struct Total {
  using type = V;
};
template <class V>
using total_t = typename Total<V>::type;

// min and max that keep a NaN in `value`; one in the bound may stay or not.
template <class V>
MASPO_HD V at_least(V value, V low) {
  return select(value < low, low, value);
}
template <class V>
MASPO_HD V at_most(V value, V high) {
  return select(value > high, high, value);
}
#if defined(MASPO_GPU_ARITHMETIC)
template <>
__device__ __forceinline__ float at_least(float value, float low) {
  return gpu::larger(value, low);
}
template <>
__device__ __forceinline__ float at_most(float value, float high) {
  return gpu::smaller(value, high);
}
#endif
// min(max(value, low), high): high wins when low > high, as in torch.clamp; NaN stays NaN.
template <class V>
MASPO_HD V clamp(V value, V low, V high) {
  return at_most(at_least(value, low), high);
}
template <class V>
MASPO_HD void add_to(V& total, V value) {
  total += value;
}
// total += value where the condition holds.
template <class V>
MASPO_HD void add_where(total_t<V>& total, flag_t<V> condition, V value) {
  add_to(total, select(condition, value, V(scalar_t<V>(0))));
}
#if defined(MASPO_GPU_ARITHMETIC)
// One instruction, with a predicate, instead of a selection and a sum.
template <>
__device__ __forceinline__ void add_where(float& total, bool condition, float value) {
  if (condition) total += value;
}
#endif
// A NaN in `value` leaves them as they are.
template <class V>
MASPO_HD void lower_to(V& least, V value) {
  least = at_most(least, value);
}
template <class V>
MASPO_HD void raise_to(V& most, V value) {
  most = at_least(most, value);
}
#if defined(MASPO_GPU_ARITHMETIC)
template <>
__device__ __forceinline__ void lower_to(float& least, float value) {
  least = fminf(least, value);
}
template <>
__device__ __forceinline__ void raise_to(float& most, float value) {
  most = fmaxf(most, value);
}
#endif
template <class V>
MASPO_HD V abs_of(V value) {
  return select(value < V(scalar_t<V>(0)), -value, value);
}

}  // namespace maspo
