// The part of CUDA that csrc/cuda uses, on the host: g++ compiles the kernels' own source with this in place of nvcc's
// header, and runs every thread of a block on a stack of its own. Tests only.
//
// A launch runs its blocks one after the other, in an order drawn from a seed. Within a block one thread runs at a time,
// until it waits at a barrier or a shuffle; which one goes on is drawn, too (scheduler.cpp). ThreadSanitizer sees every
// CUDA thread as a thread, with the order that CUDA guarantees and no other: program start and end, __syncthreads, and a
// __threadfence before an atomic with one after it. So it finds a missing barrier or fence on the first run.
//
// Not here, so not to be used by a kernel: inline PTX, cooperative groups, CUB, __shared__ (it is MASPO_SHARED), dynamic
// shared memory, atomics on floating point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <class T>
void __stwb(T* address, T value) {
  *address = value;
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9,
                      cudaErrorInsufficientDriver = 35, cudaErrorNoKernelImageForDevice = 209,
                      cudaErrorUnsupportedPtxVersion = 222;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <class T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  return cudaSuccess;
}
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
// A stream that is no null pointer is one that captures.
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
namespace cuda_on_host {
// Few: a warp then has several pieces, of a batch that is small enough for a test.
inline int multiprocessors = 2;
}  // namespace cuda_on_host
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_host::multiprocessors;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace cuda_on_host {

// ---- what a test may ask for

// The order of blocks and threads of all later launches.
void set_seed(uint64_t seed);
// The launches since the last call.
int count_launches();

// ---- what the kernels ask for

cudaError_t run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel);
unsigned thread_x();
unsigned block_x();
unsigned block_y();
unsigned grid_x();
unsigned grid_y();
unsigned block_dim_x();
void barrier(const char* site);
uint64_t shuffle(uint64_t value, int source_lane, unsigned mask, const char* site);
int lane();
// The shared array of this call site in this block: all bits set (NaN) when the block starts.
void* shared(const void* key, size_t bytes);
void fence();
void before_atomic(void* address);
void after_atomic(void* address);

template <class T>
T shuffle_from(unsigned mask, T value, int source_lane, const char* site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(bits, source_lane, mask, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T shuffle_xor(unsigned mask, T value, int lane_mask, const char* site) {
  return shuffle_from(mask, value, lane() ^ lane_mask, site);
}

// Whether it holds for every lane.
inline bool vote_all(unsigned mask, bool holds, const char* site) {
  unsigned all = holds;
  for (int offset = 1; offset < 32; offset *= 2) all &= shuffle_xor(mask, all, offset, site);
  return all != 0;
}

// A bit for every lane for which it holds.
inline unsigned ballot(unsigned mask, bool holds, const char* site) {
  unsigned lanes = static_cast<unsigned>(holds) << lane();
  for (int offset = 1; offset < 32; offset *= 2) lanes |= shuffle_xor(mask, lanes, offset, site);
  return lanes;
}

template <unsigned (*get)()>
struct Coordinate {
  operator unsigned() const { return get(); }
};

}  // namespace cuda_on_host

static const struct {
  cuda_on_host::Coordinate<cuda_on_host::thread_x> x;
} threadIdx = {};
static const struct {
  cuda_on_host::Coordinate<cuda_on_host::block_x> x;
  cuda_on_host::Coordinate<cuda_on_host::block_y> y;
} blockIdx = {};
static const struct {
  cuda_on_host::Coordinate<cuda_on_host::grid_x> x;
  cuda_on_host::Coordinate<cuda_on_host::grid_y> y;
} gridDim = {};

static const struct {
  cuda_on_host::Coordinate<cuda_on_host::block_dim_x> x;
} blockDim = {};

#define MASPO_TEXT_OF(x) #x
#define MASPO_LINE_TEXT(x) MASPO_TEXT_OF(x)
#define MASPO_SITE __FILE__ ":" MASPO_LINE_TEXT(__LINE__)

#define __syncthreads() ::cuda_on_host::barrier(MASPO_SITE)
#define __threadfence() ::cuda_on_host::fence()
#define __shfl_xor_sync(mask, value, lane_mask) ::cuda_on_host::shuffle_xor(mask, value, lane_mask, MASPO_SITE)
#define __shfl_sync(mask, value, source_lane) ::cuda_on_host::shuffle_from(mask, value, source_lane, MASPO_SITE)
#define __all_sync(mask, holds) ::cuda_on_host::vote_all(mask, holds, MASPO_SITE)
#define __ballot_sync(mask, holds) ::cuda_on_host::ballot(mask, holds, MASPO_SITE)
#define MASPO_SHARED(T, name, count) \
  static const char name##_key = 0;  \
  T(&name)[count] = *static_cast<T(*)[count]>(::cuda_on_host::shared(&name##_key, sizeof(T) * (count)))

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  cuda_on_host::before_atomic(address);
  const unsigned old = __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  cuda_on_host::after_atomic(address);
  return old;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  return cuda_on_host::run_grid(config->gridDim, config->blockDim, [&] { kernel(static_cast<Parameters>(arguments)...); });
}
