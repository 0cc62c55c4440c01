// grad = dlogp * scale_of_row * grad_loss: one warp per stretch of steps.
#pragma once

#include "cuda/load.cuh"
#include "cuda/walk.cuh"

namespace maspo {

struct BackwardParams {
  const void* dlogp;
  const double* scales;  // [1 + rows]: batch_scale, row_scale
  const void* grad_loss;
  void* grad;
  Batch batch;
  Cut cut;
};

// At least so many blocks a multiprocessor, if there are tokens for them: the last of them end at about the same time.
constexpr int kBackwardBlocks = 32, kBackwardWarps = 8;
// Steps of a lane whose loads are on their way together: a warp that waited for each would not keep the memory busy.
constexpr int kStepsAtOnce = 4;
// Those of a warp in a large batch: with few, what runs at a time lies together.
constexpr int kStepsOfWarp = 2 * kStepsAtOnce;

MASPO_HD Cut backward_cut(const Batch& b, int64_t multiprocessors) {
  const int64_t of_steps = b.tokens / (kBackwardWarps * kStepsOfWarp * kStepTokens);
  return cuda_cut(b, {bounded(of_steps, multiprocessors * kBackwardBlocks, kMaxBlocks), kBackwardWarps});
}

template <class Format>
__global__ void __launch_bounds__(kBackwardWarps* kWarp) backward_kernel(BackwardParams p) {
  using S = typename Format::Arithmetic;
  using T = typename Format::Stored;
  const double grad_loss = static_cast<double>(*static_cast<const S*>(p.grad_loss));
  for_each_piece(p.batch, p.cut, this_warp(), [&](int64_t, const Span& span, bool) {
    const S scale = static_cast<S>(scale_of_row(p.scales[0], p.scales[1 + span.row]) * grad_loss);
    if (scale == S(1) && p.grad == p.dlogp) return;  // the forward pass knew all of the scale
    const S* const dlogp = static_cast<const S*>(p.dlogp) + span.start;
    T* const grad = static_cast<T*>(p.grad) + span.start;
    const bool aligned = aligned_for_pack<kLane>(dlogp);
    const auto write = [&](int64_t col, int count, const S(&values)[kLane]) {
      T rounded[kLane];
#pragma unroll
      for (int i = 0; i < kLane; ++i) rounded[i] = Format::rounded(values[i] * scale);
      store_pack(grad + col, count, rounded);
    };
    int64_t col = span.first + threadIdx.x % kWarp * kLane;
    for (; col + (kStepsAtOnce - 1) * kStepTokens + kLane <= span.last; col += kStepsAtOnce * kStepTokens) {
      Pack<S, kLane> four[kStepsAtOnce];
#pragma unroll
      for (int k = 0; k < kStepsAtOnce; ++k) four[k] = load_pack(dlogp + col + k * kStepTokens, aligned);
#pragma unroll
      for (int k = 0; k < kStepsAtOnce; ++k) write(col + k * kStepTokens, kLane, four[k].value);
    }
    for (; col < span.last; col += kStepTokens) {
      const int count = static_cast<int>(bounded(span.last - col, 0, kLane));
      S values[kLane] = {};
      load_as(dlogp + col, 1, count, values, Cast<S>());
      write(col, count, values);
    }
  });
}

}  // namespace maspo
