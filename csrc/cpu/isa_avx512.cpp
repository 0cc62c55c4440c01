#if defined(__x86_64__)
#define MASPO_ISA_NAME "avx512"
#define MASPO_ISA_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"
#define MASPO_ISA_KERNELS kAvx512Kernels
#define MASPO_ISA_FLOATS 16
#define MASPO_ISA_EXPF Sleef_expf16_u10
#define MASPO_ISA_EXPD Sleef_expd8_u10
// The unmasked form warns of an uninitialised register in gcc 12.
#define MASPO_ISA_SQRTF(v) _mm512_maskz_sqrt_ps(0xffff, v)
#define MASPO_ISA_SQRTD(v) _mm512_maskz_sqrt_pd(0xff, v)
#define MASPO_ISA_REGISTER __m512
#define MASPO_ISA_REGISTER_D __m512d
#include "cpu/isa_x86.h"
#endif
