#if defined(__x86_64__)
#define MASPO_ISA_NAME "avx512"
#define MASPO_ISA_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"
#define MASPO_ISA_KERNELS kAvx512Kernels
#define MASPO_ISA_FLOATS 16
// With a mask of all lanes: the unmasked forms warn of an uninitialised register in gcc 12.
#define MASPO_ISA_OP(name, ...) _mm512_maskz_##name(-1, __VA_ARGS__)
#include "cpu/isa_x86.h"
#endif
