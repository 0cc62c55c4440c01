// Instructions of a GPU for which C++ has no word. What each does to NaN and to small numbers, and its error, are PTX's; a
// CPU takes what C++ has, and the emulation (tests/emulation/core) has models of these.
#pragma once

namespace maspo {
namespace gpu {

// To 1 ulp, in one instruction and without a branch.
__device__ __forceinline__ float root(float v) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
}

// To 2 ulp, likewise; numbers below 2^-126 count as 0, and a / b is 0 where |b| is above 2^126.
__device__ __forceinline__ float quotient(float a, float b) {
  float ab;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(ab) : "f"(a), "f"(b));
  return ab;
}

// 2^v, to 2 ulp; numbers below 2^-126 count as 0.
__device__ __forceinline__ float power_of_2(float v) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
  return power;
}

// A comparison and a selection in one instruction; NaN where one of both is.
__device__ __forceinline__ float larger(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}
__device__ __forceinline__ float smaller(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}

}  // namespace gpu
}  // namespace maspo
