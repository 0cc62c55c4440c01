// SLEEF's exp of a register of doubles, which libtorch carries, for a program without libtorch: the C library's, lane by lane.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

extern "C" {
__attribute__((target("avx2"))) __m256d Sleef_expd4_u10(__m256d v) {
  alignas(32) double lane[4];
  _mm256_store_pd(lane, v);
  for (double& one : lane) one = exp(one);
  return _mm256_load_pd(lane);
}
__attribute__((target("avx512f"))) __m512d Sleef_expd8_u10(__m512d v) {
  alignas(64) double lane[8];
  _mm512_store_pd(lane, v);
  for (double& one : lane) one = exp(one);
  return _mm512_load_pd(lane);
}
}
#endif
