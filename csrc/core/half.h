// bfloat16 and float16 as raw bits, by integer arithmetic: the same bits on every compiler and device.
#pragma once

#include "core/portable.h"

namespace maspo {

MASPO_HD float float_from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

MASPO_HD uint32_t bits_from_float(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

MASPO_HD float float_from_bfloat16(uint16_t bits) { return float_from_bits(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
MASPO_HD uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The exponent is rebased by a multiplication, which also normalises float16's subnormals.
MASPO_HD float float_from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t infinite_or_nan = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t rebased = bits_from_float(float_from_bits(magnitude) * 0x1p112f);
  return float_from_bits(sign | rebased | infinite_or_nan);
}

// Round to nearest, ties to even; overflow gives inf; a NaN stays a NaN.
MASPO_HD uint16_t float16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, the first value that rounds to inf
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: let float addition do the rounding at 2^-24
    result = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | result);
}

}  // namespace maspo
