// From torch tensors to what the engines take.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

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
      STD_TORCH_CHECK(false, "maspo_ext: ", name, ": expected a dtype of floats, integers or bool, got ",
                      torch::headeronly::toString(type), ". Cast it to float32, or a mask to bool.");
  }
}

inline bool is_floating(DType type) { return type <= kFloat16; }

// The dtype of arithmetic, loss and saved gradient.
inline ScalarType arithmetic_type(DType type) { return type == kFloat64 ? ScalarType::Double : ScalarType::Float; }

// A contiguous tensor on the device of `like`. By the C function: torch::stable::new_empty looks an operator up by its name,
// which takes longer than the allocation.
inline Tensor new_contiguous(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                         dtype, device_type, device_index, &made));
  return Tensor(made);
}

// As Python shows it.
inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t dim = 0; dim < t.dim(); ++dim) text += (dim ? ", " : "") + std::to_string(t.size(dim));
  return text + "]";
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// On a CPU cu_seqlens is looked at; on a GPU that would need a wait, and the kernels stay within the tokens whatever it holds.
inline void check_rows(const Batch& b) {
  for (int64_t row = 0; row < b.rows; ++row) {
    STD_TORCH_CHECK(is_sound_row(b, row), "maspo_ext: cu_seqlens: expected 0 first, ", b.tokens,
                    " (the number of tokens) last, and no step down or longer than max_seqlen = ", b.cols, ", got [",
                    b.cu_seqlens[row], ", ", b.cu_seqlens[row + 1], ") for sequence ", row,
                    ". Pass the running sum of the sequence lengths, with a 0 before it, and the longest of them.");
  }
}

// `like`, which errors call `name`, is [B, T], or [total_tokens] where cu_seqlens is given.
inline Batch batch_of(const Tensor& like, const char* name, const std::optional<Tensor>& cu_seqlens,
                      std::optional<int64_t> max_seqlen) {
  if (!cu_seqlens) {
    STD_TORCH_CHECK(like.dim() == 2, "maspo_ext: ", name, ": expected shape [B, T], got ", shape_of(like),
                    ". Pad the sequences to one width, or pass cu_seqlens.");
    return {like.size(0), like.size(1), nullptr, like.numel()};
  }
  STD_TORCH_CHECK(like.dim() == 1, "maspo_ext: ", name, ": expected shape [total_tokens], since cu_seqlens is given, got ",
                  shape_of(like), ". Flatten it, or drop cu_seqlens.");
  STD_TORCH_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->size(0) >= 1 && cu_seqlens->is_contiguous() &&
                      cu_seqlens->scalar_type() == ScalarType::Long && cu_seqlens->device() == like.device(),
                  "maspo_ext: cu_seqlens: expected contiguous int64 of shape [B + 1] on the device of ", name, ", got ",
                  torch::headeronly::toString(cu_seqlens->scalar_type()), " of shape ", shape_of(*cu_seqlens),
                  ". Call torch.ops.maspo.loss, which converts it, or .to(torch.int64).contiguous().");
  STD_TORCH_CHECK(max_seqlen && *max_seqlen >= 0,
                  "maspo_ext: max_seqlen: expected a number >= 0, since cu_seqlens is given, got ",
                  max_seqlen ? std::to_string(*max_seqlen) : "None", ". It is the length of the longest sequence.");
  const Batch batch = {cu_seqlens->size(0) - 1, *max_seqlen,
                       static_cast<const int64_t*>(cu_seqlens->const_data_ptr()), like.numel()};
  STD_TORCH_CHECK(batch.rows > 0 || batch.tokens == 0, "maspo_ext: cu_seqlens: expected the sequences of ", batch.tokens,
                  " tokens, got none. Pass the running sum of the sequence lengths, with a 0 before it.");
  if (!like.is_cuda()) check_rows(batch);
  return batch;
}

// Reads a batch's tensors as views. Padded: [B, T], [B, 1] or [B]. Packed: [total_tokens] or [B, 1].
class ViewReader {
 public:
  ViewReader(const Batch& batch, const Tensor& log_prob) : batch_(batch), log_prob_(log_prob) {}

  View operator()(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.device() == log_prob_.device(), "maspo_ext: ", name,
                    ": expected the device of log_prob, got another. Move it: ", name, ".to(log_prob.device).");
    const DType dtype = dtype_of(t.scalar_type(), name);
    const int64_t dim = t.dim();
    const bool packed = batch_.cu_seqlens != nullptr;
    if (packed && dim == 1 && t.size(0) == batch_.tokens) return {t.const_data_ptr(), 0, t.stride(0), dtype};
    if (!packed && dim == 2 && t.size(0) == batch_.rows && t.size(1) == batch_.cols) {
      return {t.const_data_ptr(), t.stride(0), t.stride(1), dtype};
    }
    const bool column = dim == 2 && t.size(1) == 1;
    STD_TORCH_CHECK((column || (dim == 1 && !packed)) && t.size(0) == batch_.rows, "maspo_ext: ", name, ": expected shape ",
                    shape_of(log_prob_), " (that of log_prob)", packed ? " or [B, 1]" : ", [B, 1] or [B]", " with B = ",
                    batch_.rows, ", got ", shape_of(t), ". Slice or expand it to match.");
    return {t.const_data_ptr(), t.stride(0), 0, dtype};
  }

  View operator()(const std::optional<Tensor>& t, const char* name) const {
    return t ? (*this)(*t, name) : View{nullptr, 0, 0, kFloat32};
  }

 private:
  const Batch& batch_;
  const Tensor& log_prob_;
};

}  // namespace maspo
