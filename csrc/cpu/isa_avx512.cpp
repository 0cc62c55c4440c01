// x86-64 with AVX512; exp is SLEEF's, which libtorch carries (1.0 ULP).
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

// To the end of the file: templates are instantiated there.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#endif

#include "cpu/engine.h"
#include "cpu/vec.h"

extern "C" __m512 Sleef_expf16_u10(__m512);
extern "C" __m512d Sleef_expd8_u10(__m512d);

namespace maspo {
namespace {
using Floats = Vec<float, 16>;
using Doubles = Vec<double, 8>;
MASPO_VEC_OP Floats exp_of(Floats v) { return Floats(Sleef_expf16_u10(v.r)); }
MASPO_VEC_OP Doubles exp_of(Doubles v) { return Doubles(Sleef_expd8_u10(v.r)); }
}  // namespace
}  // namespace maspo

#include "cpu/forward_unit.h"

namespace maspo {
const CpuKernels kAvx512Kernels = {"avx512", forward_unit<Floats>, forward_unit<Doubles>};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
