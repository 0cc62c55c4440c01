// The forward pass: one warp per piece, one block per unit. The block that comes last adds everything up, so that one launch
// does it all.
#pragma once

#include "cuda/finish.cuh"
#include "cuda/load.cuh"

namespace maspo {

// Four tokens of one lane.
template <class S, class Hyper>
__device__ __forceinline__ void forward_four(const LossParams& p, const Hyper& h, const Options<S>& o,
                                             const Span& span, int64_t col, int count,
                                             StatSums<S, kSumsOf<Hyper>>& sums, S& loss) {
  const auto load = [&](const View& v, S (&out)[kLane]) {
    if (v.data != nullptr) load_four(v, offset_of(v, p.batch, span, col), count, out);
  };
  S mask[kLane] = {}, dlogp[kLane] = {};
  load(p.response_mask, mask);
  if (mask[0] != S(0) || mask[1] != S(0) || mask[2] != S(0) || mask[3] != S(0)) {
    S log_prob[kLane] = {}, old_log_prob[kLane] = {}, advantage[kLane] = {}, is_weight[kLane] = {1, 1, 1, 1};
    S entropy[kLane] = {}, ref_log_prob[kLane] = {};
    load(p.log_prob, log_prob);
    load(p.old_log_prob, old_log_prob);
    load(p.advantages, advantage);
    load(p.rollout_is_weights, is_weight);
    load(p.entropy, entropy);
    load(p.ref_log_prob, ref_log_prob);
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const TokenInputs<S> in{mask[i],      log_prob[i], old_log_prob[i], advantage[i],
                              is_weight[i], entropy[i],  ref_log_prob[i]};
      const TokenOutputs<S> out = visit_token(in, h, o, sums);
      loss += out.loss;
      dlogp[i] = out.dlogp;
    }
  }
  if (p.dlogp != nullptr) store_pack(static_cast<S*>(p.dlogp) + span.start + col, count, dlogp);
}

// Whether this block is the last one of the grid to come here; what every other block wrote before is then visible to all
// threads of this one. To be called after a barrier that follows what the block's other threads wrote. The counter is 0 again
// afterwards, so that the next launch finds it so.
__device__ __forceinline__ bool is_last_block(unsigned* counter, bool* scratch) {
  if (threadIdx.x == 0) {
    __threadfence();  // release: the block's results, before the ticket that announces them
    *scratch = atomicAdd(counter, 1u) == gridDim.x - 1;
    __threadfence();  // acquire: the others' tickets, before their results
    if (*scratch) *counter = 0;
  }
  __syncthreads();
  return *scratch;
}

// Blocks per multiprocessor that the compiler is to make room for: 102 registers a thread for float32, 170 for float64. With
// these it spills nothing; left to itself it takes fewer and does (tests/building checks both).
template <class S>
constexpr int kForwardBlocks = sizeof(S) == sizeof(float) ? 5 : 3;

template <class S, template <class> class Hyper>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks<S>) forward_kernel(LossParams p, unsigned* counter) {
  MASPO_SHARED(StatSums<double>, stat_scratch, kWarpsPerBlock);
  MASPO_SHARED(double, scratch, kWarpsPerBlock);
  MASPO_SHARED(bool, is_last, 1);
  const int64_t piece = piece_of_warp();
  const Hyper<S> h = hyper_of<Hyper, S>(p);
  const Options<S> o = options_as<S>(p.options);
  StatSums<S, kSumsOf<Hyper<S>>> sums = no_sums<S, kSumsOf<Hyper<S>>>();
  S loss = 0;
  for_each_four(p.batch, p.tiling, piece, [&](const Span& span, int64_t col, int count) {
    forward_four(p, h, o, span, col, count, sums, loss);
  });
  const double piece_loss = warp_sum(static_cast<double>(loss));
  const double piece_tokens = warp_sum(static_cast<double>(sums.sum[kTokens]));
  if (threadIdx.x % kWarp == 0 && piece < piece_count(p.batch, p.tiling)) p.pieces[piece] = {piece_tokens, piece_loss};
  const StatSums<double> unit = block_sums(sums, stat_scratch);
  if (threadIdx.x == 0 && blockIdx.x < p.tiling.units) p.units[blockIdx.x] = unit;
  if (is_last_block(counter, is_last)) finish_forward<S>(p, scratch, stat_scratch);
}

}  // namespace maspo
