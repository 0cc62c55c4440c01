// x86-64 with AVX2; exp is SLEEF's, which libtorch carries (1.0 ULP).
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

// To the end of the file: templates are instantiated there.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/engine.h"
#include "cpu/vec.h"

extern "C" __m256 Sleef_expf8_u10(__m256);
extern "C" __m256d Sleef_expd4_u10(__m256d);

namespace maspo {
namespace {
using Floats = Vec<float, 8>;
using Doubles = Vec<double, 4>;
MASPO_VEC_OP Floats exp_of(Floats v) { return Floats(Sleef_expf8_u10(v.r)); }
MASPO_VEC_OP Doubles exp_of(Doubles v) { return Doubles(Sleef_expd4_u10(v.r)); }
}  // namespace
}  // namespace maspo

#include "cpu/forward_unit.h"

namespace maspo {
const CpuKernels kAvx2Kernels = {"avx2", forward_unit<Floats>, forward_unit<Doubles>};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
