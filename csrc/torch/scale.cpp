// maspo::scale_: how a gradient that was made on the way forward takes in the gradient of the loss.
#if defined(MASPO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/engine.h"
#include "torch/cuda_stream.h"
#include "torch/tensors.h"

namespace maspo {
namespace {

void scale_(Tensor tensor, Tensor by) {
  const DType dtype = dtype_of(tensor.scalar_type(), "tensor");
  STD_TORCH_CHECK(is_floating(dtype) && tensor.is_contiguous(), "maspo_ext: tensor: expected contiguous and of floats, got ",
                  torch::headeronly::toString(tensor.scalar_type()), tensor.is_contiguous() ? "" : ", not contiguous",
                  ". Multiply it by torch.mul.");
  const ScalarType arithmetic = arithmetic_type(dtype);
  STD_TORCH_CHECK(by.numel() == 1 && by.scalar_type() == arithmetic && by.device() == tensor.device(),
                  "maspo_ext: by: expected one ", torch::headeronly::toString(arithmetic), " on the tensor's device, got ",
                  torch::headeronly::toString(by.scalar_type()), " of shape ", shape_of(by), ". Multiply by torch.mul.");
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  check_cuda(scale_cuda(tensor.mutable_data_ptr(), dtype, tensor.numel(), by.const_data_ptr(), current_cuda_place(tensor)),
             "scale_");
}

}  // namespace
}  // namespace maspo

STABLE_TORCH_LIBRARY_IMPL(maspo, CUDA, m) { m.impl("scale_", TORCH_BOX(&maspo::scale_)); }
#endif
