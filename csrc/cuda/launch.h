// What every launch of a kernel goes through.
#pragma once

#include <cuda_runtime.h>

#include "cuda/engine.h"
#include "cuda/format.cuh"

namespace maspo {

// The runtime is linked statically and has its own idea of the current device: it is set before every launch.
inline cudaError_t enter(int64_t blocks, CudaPlace place) {
  return blocks > kMaxBlocks ? cudaErrorInvalidConfiguration : cudaSetDevice(place.device);
}

inline int64_t multiprocessors_of(int device) {
  int count = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return status == cudaSuccess ? count : 1;  // the launch will tell what is wrong
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 blocks, int threads, CudaPlace place, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(place.stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// run(Float32()) or what else the dtype is.
template <class Run>
cudaError_t with_format(DType dtype, Run run) {
  switch (dtype) {
    case kFloat32:
      return run(Float32());
    case kFloat64:
      return run(Float64());
    case kBFloat16:
      return run(BFloat16());
    case kFloat16:
      return run(Float16());
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace maspo
