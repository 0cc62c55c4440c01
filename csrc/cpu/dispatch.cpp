// Which instruction set runs.
#include <cstring>

#include "cpu/engine.h"

namespace maspo {

const CpuKernels* cpu_kernels(const char* requested) {
  const CpuKernels* available[3];
  int count = 0;  // best first
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    available[count++] = &kAvx512Kernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    available[count++] = &kAvx2Kernels;
  }
#elif defined(__aarch64__)
  available[count++] = &kNeonKernels;
#endif
  available[count++] = &kPlainKernels;
  if (requested == nullptr) return available[0];
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(available[i]->name, requested) == 0) return available[i];
  }
  return nullptr;
}

}  // namespace maspo
