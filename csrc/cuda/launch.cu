// Launches of the loss' kernels.
#include "cuda/launch.h"

#include <atomic>

#include "cuda/backward.cuh"
#include "cuda/bapo.cuh"
#include "cuda/forward.cuh"

namespace maspo {
namespace {

// Counters of the forward kernel's blocks, 0 between launches: so a launch needs no memory set before it. Each launch takes
// the next one; two launches share a counter only with kCounters others between them, more than a device has in flight. What
// a graph captures keeps its counter for as long as the graph lives, and may be replayed beside any launch: it has others.
constexpr unsigned kCounters = 1u << 19;
__device__ unsigned counters[2][kCounters];

cudaError_t next_counter(CudaPlace place, unsigned** counter) {
  static std::atomic<unsigned> launches[2];
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t status = cudaStreamIsCapturing(static_cast<cudaStream_t>(place.stream), &capture);
  if (status != cudaSuccess) return status;
  const int of_graph = capture == cudaStreamCaptureStatusActive;
  void* first = nullptr;
  status = cudaGetSymbolAddress(&first, counters);
  const unsigned next = launches[of_graph].fetch_add(1, std::memory_order_relaxed) % kCounters;
  *counter = static_cast<unsigned*>(first) + of_graph * kCounters + next;
  return status;
}

template <class... Parameters, class AnyCut, class... Arguments>
cudaError_t launch_cut(void (*kernel)(Parameters...), const AnyCut& cut, CudaPlace place, Arguments... arguments) {
  const dim3 blocks(static_cast<unsigned>(cut.blocks));
  return launch(kernel, blocks, static_cast<int>(cut.warps) * kWarp, place, arguments...);
}

template <template <class> class Hyper>
cudaError_t launch_forward(const LossParams& p, const Grid& grid, CudaPlace place) {
  unsigned* counter = nullptr;
  const cudaError_t status = next_counter(place, &counter);
  if (status != cudaSuccess) return status;
  const auto by = [&](auto kernel, const auto& cut) { return launch_cut(kernel, cut, place, p, cut, counter); };
  const auto with = [&](auto kernel) { return by(kernel, cuda_cut(p.batch, grid)); };
  if (p.log_prob.dtype == kFloat64) return with(forward_kernel<Hyper, AnySteps<double, Hyper<double>>>);
#define MASPO_IF_PLAIN(dtype, Format, Mask) \
  if (is_plain<Hyper<float>, Mask>(p, dtype)) return with(forward_kernel<Hyper, PlainSteps<Format, Hyper<float>, Mask>>)
#define MASPO_IF_GROUPS(dtype, Format)                                         \
  if (takes_groups(p, grid) && is_plain<Hyper<float>, ByteMask>(p, dtype)) {   \
    return by(forward_groups_kernel<Hyper, Format>, group_cut(p.batch, grid)); \
  }
  MASPO_IF_GROUPS(kFloat32, Float32);
  MASPO_IF_GROUPS(kBFloat16, BFloat16);
#undef MASPO_IF_GROUPS
  MASPO_IF_PLAIN(kFloat32, Float32, ByteMask);
  MASPO_IF_PLAIN(kFloat32, Float32, WideMask<4>);
  MASPO_IF_PLAIN(kFloat32, Float32, WideMask<8>);
  MASPO_IF_PLAIN(kBFloat16, BFloat16, ByteMask);
  MASPO_IF_PLAIN(kBFloat16, BFloat16, WideMask<4>);
  MASPO_IF_PLAIN(kBFloat16, BFloat16, WideMask<8>);
#undef MASPO_IF_PLAIN
  return with(forward_kernel<Hyper, AnySteps<float, Hyper<float>>>);
}

template <class S>
cudaError_t launch_bapo_sums(const BapoParams& p, const Cut& cut, CudaPlace place) {
  const unsigned candidates = candidate_count(p.candidates);
  const dim3 blocks(static_cast<unsigned>(cut.blocks), (candidates + kBapoChunk - 1) / kBapoChunk);
  const cudaError_t status = launch(bapo_sums_kernel<S>, blocks, static_cast<int>(cut.warps) * kWarp, place, p, cut);
  if (status != cudaSuccess) return status;
  return launch(bapo_total_kernel, dim3(candidates), kWarp, place, p, cut.blocks);
}

}  // namespace

Grid grid_cuda(int device, DType log_prob) {
  return {multiprocessors_of(device), log_prob == kFloat64 ? kMostWarps<double> : kMostWarps<float>};
}

int forward_cuda(const LossParams& params, const Grid& grid, CudaPlace place) {
  const cudaError_t status = enter(grid.blocks, place);
  if (status != cudaSuccess) return status;
  switch (params.method) {
#define MASPO_LAUNCH(id, name, Hyper) \
  case id:                            \
    return launch_forward<Hyper>(params, grid, place);
    MASPO_METHODS(MASPO_LAUNCH)
#undef MASPO_LAUNCH
    default:
      return cudaErrorInvalidValue;
  }
}

int backward_cuda(const void* dlogp, const double* scales, const void* grad_loss, void* grad, DType dtype,
                  const Batch& batch, CudaPlace place) {
  if (batch.rows == 0 || batch.cols == 0) return cudaSuccess;
  const Cut cut = backward_cut(batch, multiprocessors_of(place.device));
  const cudaError_t status = enter(cut.blocks, place);
  if (status != cudaSuccess) return status;
  const BackwardParams p = {dlogp, scales, grad_loss, grad, batch, cut};
  return with_format(dtype, [&](auto format) { return launch_cut(backward_kernel<decltype(format)>, cut, place, p); });
}

int bapo_sums_cuda(const BapoParams& params, const Cut& cut, CudaPlace place) {
  const cudaError_t status = enter(cut.blocks, place);
  if (status != cudaSuccess) return status;
  return params.log_prob.dtype == kFloat64 ? launch_bapo_sums<double>(params, cut, place)
                                           : launch_bapo_sums<float>(params, cut, place);
}

int bapo_bounds_cuda(const BapoCandidates& candidates, const double* sums, double target, double eps, bool upper_first,
                     double* bounds, CudaPlace place) {
  const cudaError_t status = cudaSetDevice(place.device);
  if (status != cudaSuccess) return status;
  return launch(bapo_bounds_kernel, dim3(1), 1, place, candidates, sums, target, eps, upper_first, bounds);
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

const char* cuda_error_remedy(int error) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
      return "The kernels are for GPUs from compute capability 8.0 on (A100): move the tensors to a CPU, or take such a GPU.";
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return "The driver is older than the CUDA toolkit that built maspo_ext (python -m maspo_ext shows it): update the driver.";
    default:
      return "After an earlier error, or with arguments of another device: CUDA_LAUNCH_BLOCKING=1 shows which call it was.";
  }
}

}  // namespace maspo
