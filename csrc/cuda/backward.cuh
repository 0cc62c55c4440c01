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
  const int64_t piece = piece_of_warp();
  if (piece >= piece_count(p.batch, p.tiling)) return;
  const double row_scale = p.row_scale[piece / p.tiling.pieces_per_row];
  const S scale = static_cast<S>(row_scale * static_cast<double>(*static_cast<const S*>(p.grad_loss)));
  const View dlogp = {p.dlogp, 0, 1, sizeof(S) == sizeof(float) ? kFloat32 : kFloat64};
  for_each_four(p.batch, p.tiling, piece, [&](const Span& span, int64_t col, int count) {
    S values[kLane] = {};
    load_as<S>(dlogp, span.start + col, count, values, Cast<S>());
    T rounded[kLane];
#pragma unroll
    for (int i = 0; i < kLane; ++i) rounded[i] = R::from(values[i] * scale);
    store_four(static_cast<T*>(p.grad) + span.start + col, count, rounded);
  });
}

}  // namespace maspo
