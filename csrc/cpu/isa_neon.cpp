// 64-bit ARM, whose every processor has NEON: registers of four floats or two doubles.
#if defined(__aarch64__)
#include <arm_neon.h>

// A product and a sum in one rounding, as on every other instruction set here; clang does it across operators only if told.
#if defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "cpu/pair.h"
#include "cpu/vec_exp_double.h"

namespace maspo {
namespace {
using Floats = Vec<float, 4>;
using Doubles = Vec<double, 2>;
// Of a NaN and a number the second, which ARM's own instructions do not give.
template <class S, int N>
MASPO_VEC_OP Vec<S, N> larger_of(Vec<S, N> a, Vec<S, N> b) {
  return select(a > b, a, b);
}
template <class S, int N>
MASPO_VEC_OP Vec<S, N> smaller_of(Vec<S, N> a, Vec<S, N> b) {
  return select(a < b, a, b);
}
MASPO_VEC_OP Floats sqrt_of(Floats v) { return Floats(vsqrtq_f32(v.r)); }
MASPO_VEC_OP Doubles sqrt_of(Doubles v) { return Doubles(vsqrtq_f64(v.r)); }
}  // namespace
}  // namespace maspo

#include "cpu/kernels.h"

namespace maspo {
const CpuKernels kNeonKernels = kernels_of<Pair<Pair<Floats>>, Floats, Doubles>("neon");
}
#endif
