// The CUDA engine: launches on the given stream, no synchronisation, no torch.
#pragma once

#include "core/logit_rows.h"
#include "cuda/groups.h"

namespace maspo {

struct CudaPlace {
  int device;
  void* stream;  // cudaStream_t
};

// Of the passes over a batch of this dtype.
Grid grid_cuda(int device, DType log_prob);

// These return a cudaError_t; 0 is success.

// params.pieces: most_pieces of the batch; params.units: grid.blocks.
int forward_cuda(const LossParams& params, const Grid& grid, CudaPlace place);

// grad = dlogp * scale_of_row * *grad_loss, all on the device; grad has dtype `dtype`, both contiguous; scales: [1 + rows],
// batch_scale and row_scale.
int backward_cuda(const void* dlogp, const double* scales, const void* grad_loss, void* grad, DType dtype,
                  const Batch& batch, CudaPlace place);

int bapo_sums_cuda(const BapoParams& params, const Cut& cut, CudaPlace place);
int bapo_bounds_cuda(const BapoCandidates& candidates, const double* sums, double target, double eps, bool upper_first,
                     double* bounds, CudaPlace place);

// Rows of logits; any number that a grid has blocks for.
int logprob_cuda(const LogprobParams& params, CudaPlace place);
// Into so many blocks. The gradient has the logits' dtype; that of float32 logits may have bfloat16 or float16, too.
int logprob_grad_cuda(const LogprobGradParams& params, const GradBlock* blocks, size_t count, CudaPlace place);

// data = data * *by, rounded once, both on the device; `by` is of the dtype's arithmetic type.
int scale_cuda(void* data, DType dtype, int64_t count, const void* by, CudaPlace place);

const char* cuda_error_text(int error);
const char* cuda_error_remedy(int error);

}  // namespace maspo
