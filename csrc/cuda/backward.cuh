// grad = dlogp * row_scale * grad_loss: one warp per piece, as in the forward pass.
#pragma once

#include "cuda/load.cuh"
#include "cuda/reduce.cuh"

namespace maspo {

struct BackwardParams {
  const void* dlogp;
  const double* row_scale;
  const void* grad_loss;
  void* grad;
  Batch batch;
  Tiling tiling;
};

template <class T>
struct Rounded {
  __device__ __forceinline__ static T from(T value) { return value; }
};
struct RoundedBFloat16 {
  __device__ __forceinline__ static uint16_t from(float value) { return bfloat16_from_float(value); }
};
struct RoundedFloat16 {
  __device__ __forceinline__ static uint16_t from(float value) { return float16_from_float(value); }
};

// S: type of dlogp and grad_loss; T: type of grad, as stored; R: how to round S to T.
template <class S, class T, class R>
__global__ void __launch_bounds__(kBlockThreads) backward_kernel(BackwardParams p) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  if (piece >= p.batch.rows * p.tiling.pieces_per_row) return;
  const Span span =
      piece_span(p.batch, p.tiling, piece / p.tiling.pieces_per_row, piece % p.tiling.pieces_per_row);
  const S scale = static_cast<S>(p.row_scale[span.row] * static_cast<double>(*static_cast<const S*>(p.grad_loss)));
  const View dlogp = {p.dlogp, 0, 1, sizeof(S) == sizeof(float) ? kFloat32 : kFloat64};
  for (int64_t col = span.first + lane * kLane; col < span.last; col += kWarp * kLane) {
    const int count = span.last - col < kLane ? static_cast<int>(span.last - col) : kLane;
    S values[kLane] = {};
    load_as<S>(dlogp, span.start + col, count, values, Cast<S>());
    T rounded[kLane];
#pragma unroll
    for (int i = 0; i < kLane; ++i) rounded[i] = R::from(values[i] * scale);
    store_four(static_cast<T*>(p.grad) + span.start + col, count, rounded);
  }
}

}  // namespace maspo
