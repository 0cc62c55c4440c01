// The floating dtypes: how a number is stored, and the type S that it is computed in.
#pragma once

#include "core/half.h"

namespace maspo {

template <class T>
struct StoredAsComputed {
  using Stored = T;
  using Arithmetic = T;
  __device__ __forceinline__ static T number(T stored) { return stored; }
  __device__ __forceinline__ static T rounded(T number) { return number; }
};

struct Float32 : StoredAsComputed<float> {};
struct Float64 : StoredAsComputed<double> {};

struct BFloat16 {
  using Stored = uint16_t;
  using Arithmetic = float;
  __device__ __forceinline__ static float number(uint16_t bits) { return float_from_bfloat16(bits); }
  __device__ __forceinline__ static uint16_t rounded(float number) { return bfloat16_from_float(number); }
};

struct Float16 {
  using Stored = uint16_t;
  using Arithmetic = float;
  __device__ __forceinline__ static float number(uint16_t bits) { return float_from_float16(bits); }
  __device__ __forceinline__ static uint16_t rounded(float number) { return float16_from_float(number); }
};

}  // namespace maspo
