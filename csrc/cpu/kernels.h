// The table of an instruction set's kernels.
#pragma once

#include "cpu/bapo_unit.h"
#include "cpu/count_unit.h"
#include "cpu/forward_unit.h"
#include "cpu/logprob_row.h"

namespace maspo {
namespace {

template <class ManyFloats, class Floats, class Doubles>
constexpr CpuKernels kernels_of(const char* name) {
#define MASPO_FLOAT_KERNEL(id, name, Hyper) forward_unit<ManyFloats, Hyper>,
#define MASPO_DOUBLE_KERNEL(id, name, Hyper) forward_unit<Doubles, Hyper>,
  return {name,
          count_unit<Floats>,
          count_unit<Doubles>,
          {MASPO_METHODS(MASPO_FLOAT_KERNEL)},
          {MASPO_METHODS(MASPO_DOUBLE_KERNEL)},
          bapo_unit<ManyFloats>,
          bapo_unit<Doubles>,
          logprob_row<Floats>,
          logprob_row<Doubles>,
          logprob_grad_row<Floats>,
          logprob_grad_row<Doubles>};
#undef MASPO_FLOAT_KERNEL
#undef MASPO_DOUBLE_KERNEL
}

}  // namespace
}  // namespace maspo
