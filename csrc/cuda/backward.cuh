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

template <class Format>
__global__ void __launch_bounds__(kBlockThreads) backward_kernel(BackwardParams p) {
  using S = typename Format::Arithmetic;
  using T = typename Format::Stored;
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
    for (int i = 0; i < kLane; ++i) rounded[i] = Format::rounded(values[i] * scale);
    store_pack(static_cast<T*>(p.grad) + span.start + col, count, rounded);
  });
}

}  // namespace maspo
