// The CUDA engine: launches on the given stream, no synchronisation, no torch.
#pragma once

#include "core/params.h"

namespace maspo {

struct CudaPlace {
  int device;
  void* stream;  // cudaStream_t
};

// One warp works on one piece, kWarpsPerBlock warps on one unit.
constexpr int64_t kCudaPieceTokens = 512;
constexpr int kWarpsPerBlock = 4;

inline Tiling cuda_tiling(int64_t rows, int64_t cols) {
  const int64_t pieces = cols > kCudaPieceTokens ? ceil_div(cols, kCudaPieceTokens) : 1;
  return {kCudaPieceTokens, pieces, ceil_div(rows * pieces, kWarpsPerBlock)};
}

// Both return a cudaError_t; 0 is success.
int forward_cuda(const LossParams& params, CudaPlace place);

// grad[b, t] = dlogp[b, t] * row_scale[b] * *grad_loss, all on the device; grad has dtype `dtype`, both contiguous.
int backward_cuda(const void* dlogp, const double* row_scale, const void* grad_loss, void* grad, DType dtype,
                  int64_t rows, int64_t cols, CudaPlace place);

const char* cuda_error_text(int error);

}  // namespace maspo
