// Launches of the kernels.
#include <cuda_runtime.h>

#include "cuda/backward.cuh"
#include "cuda/finish.cuh"
#include "cuda/forward.cuh"

namespace maspo {
namespace {

constexpr int64_t kMaxBlocks = 2147483647;  // grid.x; 2^42 tokens

template <class S>
cudaError_t launch_forward(const LossParams& p, cudaStream_t stream) {
  if (p.tiling.units > 0) {
    forward_kernel<S><<<static_cast<unsigned>(p.tiling.units), kWarpsPerBlock * kWarp, 0, stream>>>(p);
  }
  finish_kernel<S><<<1, kFinishWarps * kWarp, 0, stream>>>(p);
  return cudaGetLastError();
}

template <class S, class T, class R>
cudaError_t launch_backward(const BackwardParams& p, cudaStream_t stream) {
  backward_kernel<S, T, R><<<static_cast<unsigned>(p.tiling.units), kWarpsPerBlock * kWarp, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

// The runtime is linked statically and has its own idea of the current device: it is set before every launch.
int forward_cuda(const LossParams& params, CudaPlace place) {
  if (params.tiling.units > kMaxBlocks) return cudaErrorInvalidConfiguration;
  const cudaError_t status = cudaSetDevice(place.device);
  if (status != cudaSuccess) return status;
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return params.log_prob.dtype == kFloat64 ? launch_forward<double>(params, stream)
                                           : launch_forward<float>(params, stream);
}

int backward_cuda(const void* dlogp, const double* row_scale, const void* grad_loss, void* grad, DType dtype,
                  int64_t rows, int64_t cols, CudaPlace place) {
  const BackwardParams p = {dlogp, row_scale, grad_loss, grad, rows, cols, cuda_tiling(rows, cols)};
  if (p.tiling.units > kMaxBlocks) return cudaErrorInvalidConfiguration;
  if (rows == 0 || cols == 0) return cudaSuccess;
  const cudaError_t status = cudaSetDevice(place.device);
  if (status != cudaSuccess) return status;
  const auto stream = static_cast<cudaStream_t>(place.stream);
  switch (dtype) {
    case kFloat64:
      return launch_backward<double, double, Rounded<double>>(p, stream);
    case kBFloat16:
      return launch_backward<float, uint16_t, RoundedBFloat16>(p, stream);
    case kFloat16:
      return launch_backward<float, uint16_t, RoundedFloat16>(p, stream);
    default:
      return launch_backward<float, float, Rounded<float>>(p, stream);
  }
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace maspo
