// The device and torch's current stream for a tensor, without linking against libtorch_cuda: the same library serves CPU
// builds of torch.
#pragma once

#include <dlfcn.h>

#include "cuda/engine.h"
#include "torch/tensors.h"

namespace maspo {

inline CudaPlace current_cuda_place(const Tensor& t) {
  using GetStream = AOTITorchError (*)(int32_t device, void** stream);
  // A weak symbol would be null without a word; the library is loaded already, since there is a CUDA tensor.
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(symbol != nullptr, "maspo_ext: torch's current CUDA stream: expected aoti_torch_get_current_cuda_stream in ",
                    "libtorch_cuda.so, got a library without it. Use torch 2.11 or newer.");
    return reinterpret_cast<GetStream>(symbol);
  }();
  CudaPlace place = {t.get_device_index(), nullptr};
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(place.device, &place.stream));
  return place;
}

inline void check_cuda(int error, const char* what) {
  STD_TORCH_CHECK(error == 0, "maspo_ext: ", what, ": expected its kernels to run, got ", cuda_error_text(error),
                  ". ", cuda_error_remedy(error));
}

}  // namespace maspo
