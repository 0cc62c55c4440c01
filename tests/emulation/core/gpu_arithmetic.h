// Models of a GPU's instructions, in place of csrc/core/gpu_arithmetic.h: NaN and small numbers as PTX has them, and results
// as far off as it allows, in a direction that depends on the argument's last bits, so that nothing can rely on exact ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cuda_runtime.h"

namespace maspo {
namespace gpu {

constexpr float kLeastNormal = 0x1p-126f;

static inline float flushed(float v) { return std::fabs(v) < kLeastNormal ? std::copysign(0.0f, v) : v; }

static inline float off_by(int ulps, float exact, float argument) {
  uint32_t bits;
  std::memcpy(&bits, &argument, sizeof(bits));
  const float towards = (bits ^ bits >> 3 ^ bits >> 7) & 1 ? std::numeric_limits<float>::infinity() : 0.0f;
  float value = exact;
  if (exact == 0 || !std::isfinite(exact)) return exact;
  for (int i = 0; i < ulps; ++i) value = std::nextafter(value, std::copysign(towards, exact));
  return value;
}

static inline float root(float v) { return off_by(1, std::sqrt(v), v); }

static inline float quotient(float a, float b) {
  a = flushed(a), b = flushed(b);
  if (std::fabs(b) > 0x1p126f && std::isfinite(b)) return std::isinf(a) ? NAN : std::copysign(0.0f, a) * std::copysign(1.0f, b);
  return flushed(off_by(2, a / b, a));
}

// Of 0 exactly 1, as the hardware has it.
static inline float power_of_2(float v) {
  v = flushed(v);
  return v == 0 ? 1.0f : flushed(off_by(2, std::exp2(v), v));
}

static inline float larger(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }
static inline float smaller(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmin(a, b); }

}  // namespace gpu
}  // namespace maspo
