// The forward pass: one warp per piece, one block per unit.
#pragma once

#include "core/token.h"
#include "cuda/engine.h"
#include "cuda/load.cuh"
#include "cuda/reduce.cuh"

namespace maspo {

// Four tokens of one lane.
template <class S>
__device__ __forceinline__ void forward_four(const LossParams& p, const LossHyper<S>& h, int64_t row, int64_t col,
                                             int count, StatSums<S>& sums, S& loss) {
  S mask[kLane] = {}, dlogp[kLane] = {};
  load_four(p.response_mask, row, col, count, mask);
  if (mask[0] != S(0) || mask[1] != S(0) || mask[2] != S(0) || mask[3] != S(0)) {
    S log_prob[kLane] = {}, old_log_prob[kLane] = {}, advantage[kLane] = {}, is_weight[kLane] = {1, 1, 1, 1};
    load_four(p.log_prob, row, col, count, log_prob);
    load_four(p.old_log_prob, row, col, count, old_log_prob);
    load_four(p.advantages, row, col, count, advantage);
    if (p.rollout_is_weights.data != nullptr) load_four(p.rollout_is_weights, row, col, count, is_weight);
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const TokenInputs<S> in{mask[i], log_prob[i], old_log_prob[i], advantage[i], is_weight[i]};
      const TokenOutputs<S> out = visit_token(in, h, sums);
      loss += out.loss;
      dlogp[i] = out.dlogp;
    }
  }
  if (p.dlogp != nullptr) store_four(static_cast<S*>(p.dlogp) + row * p.cols + col, count, dlogp);
}

template <class S>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) forward_kernel(LossParams p) {
  __shared__ StatSums<double> warp_totals[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  const LossHyper<S> h = hyper_as<S>(p.hyper);
  StatSums<S> sums = no_sums<S>();
  S loss = 0;
  const bool exists = piece < p.rows * p.tiling.pieces_per_row;
  if (exists) {
    const int64_t row = piece / p.tiling.pieces_per_row;
    const int64_t first = piece % p.tiling.pieces_per_row * p.tiling.piece_tokens;
    const int64_t last = first + p.tiling.piece_tokens < p.cols ? first + p.tiling.piece_tokens : p.cols;
    for (int64_t col = first + lane * kLane; col < last; col += kWarp * kLane) {
      const int count = last - col < kLane ? static_cast<int>(last - col) : kLane;
      forward_four(p, h, row, col, count, sums, loss);
    }
  }
  const StatSums<double> total = warp_sums(sums);
  const double loss_total = warp_sum(static_cast<double>(loss));
  if (lane == 0) {
    if (exists) p.pieces[piece] = {total.sum[kTokens], loss_total};
    warp_totals[warp] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    StatSums<double> unit = warp_totals[0];
    for (int i = 1; i < kWarpsPerBlock; ++i) add_sums(unit, warp_totals[i]);
    p.units[blockIdx.x] = unit;
  }
}

}  // namespace maspo
