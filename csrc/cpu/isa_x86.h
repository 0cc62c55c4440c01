// The kernels of one x86-64 instruction set. The including file, which holds nothing else, defines
//   MASPO_ISA_NAME, MASPO_ISA_TARGET  as strings: ours, and what the compiler calls it
//   MASPO_ISA_KERNELS                 the object to define
//   MASPO_ISA_FLOATS                  floats in a register
//   MASPO_ISA_EXPF, MASPO_ISA_EXPD    SLEEF's exp for a register, which libtorch carries (1.0 ULP)
//   MASPO_ISA_SQRTF, MASPO_ISA_SQRTD  the instruction's intrinsics
//   MASPO_ISA_REGISTER, MASPO_ISA_REGISTER_D  the register as SLEEF's types
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define MASPO_PRAGMA_TEXT(text) _Pragma(#text)
#define MASPO_PRAGMA(text) MASPO_PRAGMA_TEXT(text)

// To the end of the file: templates are instantiated there.
#if defined(__clang__)
MASPO_PRAGMA(clang attribute push(__attribute__((target(MASPO_ISA_TARGET))), apply_to = function))
#else
MASPO_PRAGMA(GCC target(MASPO_ISA_TARGET))
#endif

#include "cpu/engine.h"
#include "cpu/vec.h"

extern "C" MASPO_ISA_REGISTER MASPO_ISA_EXPF(MASPO_ISA_REGISTER);
extern "C" MASPO_ISA_REGISTER_D MASPO_ISA_EXPD(MASPO_ISA_REGISTER_D);

namespace maspo {
namespace {
using Floats = Vec<float, MASPO_ISA_FLOATS>;
using Doubles = Vec<double, MASPO_ISA_FLOATS / 2>;
MASPO_VEC_OP Floats exp_of(Floats v) { return Floats(MASPO_ISA_EXPF(v.r)); }
MASPO_VEC_OP Doubles exp_of(Doubles v) { return Doubles(MASPO_ISA_EXPD(v.r)); }
MASPO_VEC_OP Floats sqrt_of(Floats v) { return Floats(MASPO_ISA_SQRTF(v.r)); }
MASPO_VEC_OP Doubles sqrt_of(Doubles v) { return Doubles(MASPO_ISA_SQRTD(v.r)); }
}  // namespace
}  // namespace maspo

#include "cpu/kernels.h"

namespace maspo {
const CpuKernels MASPO_ISA_KERNELS = kernels_of<Floats, Doubles>(MASPO_ISA_NAME);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
