#if defined(__x86_64__)
#define MASPO_ISA_NAME "avx2"
#define MASPO_ISA_TARGET "avx2,fma,f16c"
#define MASPO_ISA_KERNELS kAvx2Kernels
#define MASPO_ISA_FLOATS 8
#define MASPO_ISA_OP(name, ...) _mm256_##name(__VA_ARGS__)
#include "cpu/isa_x86.h"
#endif
