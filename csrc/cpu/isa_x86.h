// The kernels of one x86-64 instruction set. The including file, which holds nothing else, defines
//   MASPO_ISA_NAME, MASPO_ISA_TARGET  as strings: ours, and what the compiler calls it
//   MASPO_ISA_KERNELS                 the object to define
//   MASPO_ISA_FLOATS                  floats in a register
//   MASPO_ISA_OP(name, ...)           the intrinsic of an instruction, "sqrt_ps" for example, for all lanes
#include "cpu/isa_vec.h"
#include "cpu/kernels.h"

namespace maspo {
const CpuKernels MASPO_ISA_KERNELS = kernels_of<Pair<Pair<Floats>>, Floats, Doubles>(MASPO_ISA_NAME);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
