// A tensor times a number, in place. Where that number is 1, as after a plain loss.backward(), nothing else is read or written.
#pragma once

#include "cuda/format.cuh"
#include "cuda/pack.cuh"

namespace maspo {

struct ScaleParams {
  void* data;  // contiguous
  int64_t count;
  const void* by;
};

constexpr int kScaleThreads = 256;
// On a multiprocessor: enough to keep the memory busy, with registers for the conversions of float16.
constexpr int kScaleBlocks = 5;
// A thread's step: so many packs of 16 bytes, all on their way before the first is used.
constexpr int kScalePacks = 4;

template <class Format>
__global__ void __launch_bounds__(kScaleThreads, kScaleBlocks) scale_kernel(ScaleParams p) {
  using S = typename Format::Arithmetic;
  using T = typename Format::Stored;
  constexpr int kWords = kPackWords<T>;
  const S by = *static_cast<const S*>(p.by);
  if (by == S(1)) return;
  T* const data = static_cast<T*>(p.data);
  const auto write = [&](int64_t first, int count, const T(&values)[kWords]) {
    T scaled[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) scaled[i] = Format::rounded(Format::number(values[i]) * by);
    store_pack(data + first, count, scaled);
  };
  const int64_t stride = int64_t{gridDim.x} * kScaleThreads * kWords;
  int64_t first = (int64_t{blockIdx.x} * kScaleThreads + threadIdx.x) * kWords;
  if (aligned_for_pack<kWords>(data)) {
    for (; first + (kScalePacks - 1) * stride + kWords <= p.count; first += kScalePacks * stride) {
      Pack<T, kWords> packs[kScalePacks];
#pragma unroll
      for (int k = 0; k < kScalePacks; ++k) packs[k] = load_pack<kWords>(data + first + k * stride);
#pragma unroll
      for (int k = 0; k < kScalePacks; ++k) write(first + k * stride, kWords, packs[k].value);
    }
  }
  for (; first < p.count; first += stride) {
    const int count = static_cast<int>(bounded(p.count - first, 0, kWords));
    T values[kWords] = {};
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if (i < count) values[i] = data[first + i];
    }
    write(first, count, values);
  }
}

}  // namespace maspo
