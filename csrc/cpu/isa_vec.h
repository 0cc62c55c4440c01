// The vectors of one x86-64 instruction set, for isa_x86.h, which says what is to be defined before. From here to the end of
// the source file the compiler may use that instruction set: templates are instantiated there.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define MASPO_PRAGMA_TEXT(text) _Pragma(#text)
#define MASPO_PRAGMA(text) MASPO_PRAGMA_TEXT(text)

#if defined(__clang__)
MASPO_PRAGMA(clang attribute push(__attribute__((target(MASPO_ISA_TARGET))), apply_to = function))
// A product and a sum in one rounding, which clang does across operators only if told.
#pragma clang fp contract(fast)
#else
MASPO_PRAGMA(GCC target(MASPO_ISA_TARGET))
#endif

#include "cpu/pair.h"
#include "cpu/vec_exp_double.h"

namespace maspo {
namespace {
using Floats = Vec<float, MASPO_ISA_FLOATS>;
using Doubles = Vec<double, MASPO_ISA_FLOATS / 2>;
// The instructions: of a NaN and a number the second.
MASPO_VEC_OP Floats larger_of(Floats a, Floats b) { return Floats(MASPO_ISA_OP(max_ps, a.r, b.r)); }
MASPO_VEC_OP Floats smaller_of(Floats a, Floats b) { return Floats(MASPO_ISA_OP(min_ps, a.r, b.r)); }
MASPO_VEC_OP Doubles larger_of(Doubles a, Doubles b) { return Doubles(MASPO_ISA_OP(max_pd, a.r, b.r)); }
MASPO_VEC_OP Doubles smaller_of(Doubles a, Doubles b) { return Doubles(MASPO_ISA_OP(min_pd, a.r, b.r)); }
MASPO_VEC_OP Floats floats_of_bytes(const uint8_t* p) {
  __m128i bytes = {};
  __builtin_memcpy(&bytes, p, MASPO_ISA_FLOATS);
  return Floats(MASPO_ISA_OP(cvtepi32_ps, MASPO_ISA_OP(cvtepu8_epi32, bytes)));
}
inline void cast_bytes(const uint8_t* source, int64_t count, float* buffer) {
  int64_t i = 0;
  for (; i + MASPO_ISA_FLOATS <= count; i += MASPO_ISA_FLOATS) {
    Lanes<Floats>::store(buffer + i, floats_of_bytes(source + i));
  }
  for (; i < count; ++i) buffer[i] = source[i];
}
MASPO_VEC_OP Floats sqrt_of(Floats v) { return Floats(MASPO_ISA_OP(sqrt_ps, v.r)); }
MASPO_VEC_OP Doubles sqrt_of(Doubles v) { return Doubles(MASPO_ISA_OP(sqrt_pd, v.r)); }
}  // namespace
}  // namespace maspo
