// The CPU kernels of this process, chosen once.
#pragma once

#include "cpu/engine.h"

namespace maspo {

// Raises if the environment variable MASPO_CPU_ISA asks for kernels that this machine cannot run.
const CpuKernels& chosen_cpu_kernels();

}  // namespace maspo
