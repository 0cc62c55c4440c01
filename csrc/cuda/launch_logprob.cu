// Launches of the kernels for rows of logits, and for the gradients that come of them.
#include "cuda/launch.h"

#include <algorithm>
#include <type_traits>

#include "cuda/logprob.cuh"
#include "cuda/scale.cuh"

namespace maspo {
namespace {

// run(format) launches blocks for all rows. Nothing is launched for no rows.
template <class Run>
cudaError_t over_rows(const LogitRows& logits, CudaPlace place, Run run) {
  if (row_count(logits) == 0) return cudaSuccess;
  const cudaError_t status = enter(row_count(logits), place);
  if (status != cudaSuccess) return status;
  return with_format(logits.dtype, run);
}

// A block for each of the rows' parts.
template <class Kernel, class Params>
cudaError_t launch_rows(Kernel kernel, const Params& p, int64_t parts, CudaPlace place) {
  if (parts > kMaxBlocks / row_count(p.logits)) return cudaErrorInvalidConfiguration;
  return launch(kernel, dim3(static_cast<unsigned>(row_count(p.logits) * parts)), kRowThreads, place, p);
}

}  // namespace

int logprob_cuda(const LogprobParams& params, CudaPlace place) {
  return over_rows(params.logits, place, [&](auto format) {
    return launch_rows(logprob_kernel<decltype(format)>, params, 1, place);
  });
}

int logprob_grad_cuda(const LogprobGradParams& params, CudaPlace place) {
  return over_rows(params.logits, place, [&](auto format) {
    using Format = decltype(format);
    const DType dtype = params.logits.dtype;
    const int64_t parts = parts_of_row<typename Format::Stored>(params.logits.words);
    if (params.grad_dtype == dtype) return launch_rows(logprob_grad_kernel<Format, Format>, params, parts, place);
    if constexpr (std::is_same_v<Format, Float32>) {
      if (params.grad_dtype == kBFloat16) return launch_rows(logprob_grad_kernel<Float32, BFloat16>, params, parts, place);
      if (params.grad_dtype == kFloat16) return launch_rows(logprob_grad_kernel<Float32, Float16>, params, parts, place);
    }
    return static_cast<cudaError_t>(cudaErrorInvalidValue);
  });
}

int scale_cuda(void* data, DType dtype, int64_t count, const void* by, CudaPlace place) {
  if (count == 0) return cudaSuccess;
  return with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    constexpr int64_t step = int64_t{kScaleThreads} * kScalePacks * kPackWords<typename Format::Stored>;
    const int64_t blocks = std::min((count + step - 1) / step, multiprocessors_of(place.device) * kScaleBlocks);
    const cudaError_t status = enter(blocks, place);
    if (status != cudaSuccess) return status;
    const ScaleParams p = {data, count, by};
    return launch(scale_kernel<Format>, dim3(static_cast<unsigned>(blocks)), kScaleThreads, place, p);
  });
}

}  // namespace maspo
