// Launches of the loss' kernels.
#include "cuda/launch.h"

#include <atomic>

#include "cuda/backward.cuh"
#include "cuda/bapo.cuh"
#include "cuda/forward.cuh"

namespace maspo {
namespace {

// Counters of the forward kernel's blocks, 0 between launches: so a launch needs no memory set before it. Each launch takes
// the next one; two launches share a counter only with kCounters others between them, more than a device has in flight.
constexpr unsigned kCounters = 1u << 20;
__device__ unsigned counters[kCounters];

cudaError_t next_counter(unsigned** counter) {
  static std::atomic<unsigned> launches{0};
  void* first = nullptr;
  const cudaError_t status = cudaGetSymbolAddress(&first, counters);
  *counter = static_cast<unsigned*>(first) + launches.fetch_add(1, std::memory_order_relaxed) % kCounters;
  return status;
}

template <template <class> class Hyper>
cudaError_t launch_forward(const LossParams& p, CudaPlace place) {
  unsigned* counter = nullptr;
  const cudaError_t status = next_counter(&counter);
  if (status != cudaSuccess) return status;
  const dim3 blocks(static_cast<unsigned>(p.tiling.units));
  if (p.log_prob.dtype == kFloat64) {
    return launch(forward_kernel<Hyper, AnySteps<double, Hyper<double>>>, blocks, kThreads<double>, place, p, counter);
  }
  const auto in_float32 = [&](auto kernel) { return launch(kernel, blocks, kThreads<float>, place, p, counter); };
  if (is_plain<Hyper<float>>(p, kFloat32)) return in_float32(forward_kernel<Hyper, PlainSteps<Float32, Hyper<float>>>);
  if (is_plain<Hyper<float>>(p, kBFloat16)) return in_float32(forward_kernel<Hyper, PlainSteps<BFloat16, Hyper<float>>>);
  return in_float32(forward_kernel<Hyper, AnySteps<float, Hyper<float>>>);
}

template <class S>
cudaError_t launch_bapo_sums(const BapoParams& p, CudaPlace place) {
  const unsigned candidates = candidate_count(p.candidates);
  const dim3 blocks(static_cast<unsigned>(p.tiling.units), (candidates + kBapoChunk - 1) / kBapoChunk);
  const cudaError_t status = launch(bapo_sums_kernel<S>, blocks, kThreads<S>, place, p);
  if (status != cudaSuccess) return status;
  return launch(bapo_total_kernel, dim3(candidates), kWarp, place, p);
}

}  // namespace

Grid grid_cuda(int device, DType log_prob) {
  int count = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  const int64_t multiprocessors = status == cudaSuccess ? count : 1;  // the launch will tell what is wrong
  return log_prob == kFloat64 ? grid_of<double>(multiprocessors) : grid_of<float>(multiprocessors);
}

int forward_cuda(const LossParams& params, CudaPlace place) {
  const cudaError_t status = enter(params.tiling.units, place);
  if (status != cudaSuccess) return status;
  switch (params.method) {
#define MASPO_LAUNCH(id, name, Hyper) \
  case id:                            \
    return launch_forward<Hyper>(params, place);
    MASPO_METHODS(MASPO_LAUNCH)
#undef MASPO_LAUNCH
    default:
      return cudaErrorInvalidValue;
  }
}

int backward_cuda(const void* dlogp, const double* row_scale, const void* grad_loss, void* grad, DType dtype,
                  const Batch& batch, CudaPlace place) {
  const Tiling tiling = cuda_tiling(batch.rows, batch.cols, grid_cuda(place.device, dtype));
  const BackwardParams p = {dlogp, row_scale, grad_loss, grad, batch, tiling};
  if (batch.rows == 0 || batch.cols == 0) return cudaSuccess;
  const cudaError_t status = enter(tiling.units, place);
  if (status != cudaSuccess) return status;
  return with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    const dim3 blocks(static_cast<unsigned>(tiling.units));
    return launch(backward_kernel<Format>, blocks, kThreads<typename Format::Arithmetic>, place, p);
  });
}

int bapo_sums_cuda(const BapoParams& params, CudaPlace place) {
  const cudaError_t status = enter(params.tiling.units, place);
  if (status != cudaSuccess) return status;
  return params.log_prob.dtype == kFloat64 ? launch_bapo_sums<double>(params, place)
                                           : launch_bapo_sums<float>(params, place);
}

int bapo_bounds_cuda(const BapoCandidates& candidates, const double* sums, double target, double eps, bool upper_first,
                     double* bounds, CudaPlace place) {
  const cudaError_t status = cudaSetDevice(place.device);
  if (status != cudaSuccess) return status;
  return launch(bapo_bounds_kernel, dim3(1), 1, place, candidates, sums, target, eps, upper_first, bounds);
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace maspo
