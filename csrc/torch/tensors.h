// From torch tensors to what the engines take.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "core/params.h"

namespace maspo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::Double:
      return kFloat64;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    case ScalarType::Bool:
    case ScalarType::Byte:
      return kUInt8;
    case ScalarType::Char:
      return kInt8;
    case ScalarType::Short:
      return kInt16;
    case ScalarType::Int:
      return kInt32;
    case ScalarType::Long:
      return kInt64;
    default:
      STD_TORCH_CHECK(false, "maspo: ", name, " has a dtype that the kernels cannot read; cast it to float32 or bool");
  }
}

inline bool is_floating(DType type) { return type <= kFloat16; }

// The dtype of arithmetic, loss and saved gradient.
inline ScalarType arithmetic_type(DType type) { return type == kFloat64 ? ScalarType::Double : ScalarType::Float; }

// [rows, cols], [rows, 1] or [rows], read as [rows, cols].
inline View view_of(const Tensor& t, int64_t rows, int64_t cols, const char* name) {
  const int64_t dim = t.dim();
  const bool full = dim == 2 && t.size(0) == rows && t.size(1) == cols;
  const bool column = (dim == 1 || (dim == 2 && t.size(1) == 1)) && t.size(0) == rows;
  STD_TORCH_CHECK(full || column, "maspo: ", name, " must have shape [", rows, ", ", cols, "], [", rows, ", 1] or [",
                  rows, "]");
  return {t.const_data_ptr(), t.stride(0), full ? t.stride(1) : 0, dtype_of(t.scalar_type(), name)};
}

}  // namespace maspo
