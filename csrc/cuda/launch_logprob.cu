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

// A block of threads for each of the rows' parts in these blocks of words, at most kMaxGradBlocks.
template <class Format, class GradFormat>
cudaError_t launch_grads(const LogprobGradParams& p, const GradBlock* blocks, size_t count, CudaPlace place) {
  GradBlocks some = {};
  int64_t parts = 0;
  for (size_t i = 0; i < count; ++i) {
    parts += parts_of_row<typename Format::Stored>(blocks[i].words);
    if (parts > kMaxBlocks / row_count(p.logits)) return cudaErrorInvalidConfiguration;
    some.of[i] = blocks[i];
    some.parts_up_to[i] = static_cast<unsigned>(parts);
  }
  some.count = static_cast<int>(count);
  const dim3 grid(static_cast<unsigned>(row_count(p.logits) * parts));
  return launch(logprob_grad_kernel<Format, GradFormat>, grid, kRowThreads, place, p, some);
}

}  // namespace

int logprob_cuda(const LogprobParams& params, CudaPlace place) {
  return over_rows(params.logits, place, [&](auto format) {
    const dim3 grid(static_cast<unsigned>(row_count(params.logits)));
    return launch(logprob_kernel<decltype(format)>, grid, kRowThreads, place, params);
  });
}

int logprob_grad_cuda(const LogprobGradParams& params, const GradBlock* blocks, size_t count, CudaPlace place) {
  return over_rows(params.logits, place, [&](auto format) {
    using Format = decltype(format);
    cudaError_t status = cudaSuccess;
    for (size_t first = 0; first < count && status == cudaSuccess; first += kMaxGradBlocks) {
      const size_t now = std::min<size_t>(count - first, kMaxGradBlocks);
      status = cudaErrorInvalidValue;
      if (params.grad_dtype == params.logits.dtype) {
        status = launch_grads<Format, Format>(params, blocks + first, now, place);
      } else if constexpr (std::is_same_v<Format, Float32>) {
        if (params.grad_dtype == kBFloat16) status = launch_grads<Float32, BFloat16>(params, blocks + first, now, place);
        if (params.grad_dtype == kFloat16) status = launch_grads<Float32, Float16>(params, blocks + first, now, place);
      }
    }
    return status;
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
