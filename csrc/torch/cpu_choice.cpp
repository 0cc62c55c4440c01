#include "torch/cpu_choice.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

namespace maspo {

const CpuKernels& chosen_cpu_kernels() {
  static const CpuKernels* chosen = [] {
    // An override for tests, and for reports of results that differ between machines.
    const char* requested = std::getenv("MASPO_CPU_ISA");
    const CpuKernels* kernels = cpu_kernels(requested);
    STD_TORCH_CHECK(kernels != nullptr, "maspo_ext: MASPO_CPU_ISA: expected plain, avx2, avx512 or neon (one that this ",
                    "machine has), got '", requested ? requested : "", "'. Unset it to let the machine decide.");
    return kernels;
  }();
  return *chosen;
}

namespace {
std::string cpu_isa() { return chosen_cpu_kernels().name; }
}  // namespace
}  // namespace maspo

STABLE_TORCH_LIBRARY_IMPL(maspo, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&maspo::cpu_isa)); }
