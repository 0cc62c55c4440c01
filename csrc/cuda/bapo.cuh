// BAPO's search on the device: the sums at all candidates, then the bounds.
#pragma once

#include "core/entropy_adv.h"
#include "cuda/load.cuh"
#include "cuda/reduce.cuh"
#include "cuda/walk.cuh"

namespace maspo {

// Candidates that a thread keeps in registers, with a lane each for their sums; blockIdx.y counts chunks of them.
constexpr int kBapoChunk = kWarp / 2;

// One warp per piece, one block per unit and chunk: p.units[unit, candidates of the chunk].
template <class S>
__global__ void __launch_bounds__(kMostThreads<S>, 1) bapo_sums_kernel(BapoParams p, Cut cut) {
  MASPO_SHARED(double, warp_totals, kMostThreads<S>);
  const int lane = threadIdx.x % kWarp, all = candidate_count(p.candidates), first_candidate = blockIdx.y * kBapoChunk;
  double of_warp = 0;
  const auto add_part = [&](const Span& span) {
    S sums[kBapoChunk] = {};
    for_each_four(span, [&](int64_t col, int count) {
      const auto load = [&](const View& v, S(&out)[kLane]) {
        if (v.data != nullptr) load_four(v, offset_of(v, p.batch, span, col), count, out);
      };
      S mask[kLane] = {}, log_prob[kLane] = {}, old_log_prob[kLane] = {}, advantage[kLane] = {}, entropy[kLane] = {};
      load(p.response_mask, mask);
      if (!any_token(mask)) return;
      load(p.log_prob, log_prob);
      load(p.old_log_prob, old_log_prob);
      load(p.advantages, advantage);
      load(p.entropy, entropy);
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        if (p.entropy.data != nullptr) {
          advantage[i] += entropy_bonus(advantage[i], entropy[i], static_cast<S>(p.entropy_alpha),
                                        static_cast<S>(p.entropy_kappa));
        }
        const BapoToken<S> token = bapo_token(mask[i], log_prob[i], old_log_prob[i], advantage[i]);
#pragma unroll
        for (int k = 0; k < kBapoChunk; ++k) {
          const int candidate = first_candidate + k;
          if (candidate < all) {
            sums[k] += bapo_term(token, static_cast<S>(p.candidates.bound[candidate]),
                                 candidate >= p.candidates.lower_count);
          }
        }
      }
    });
    const S of_half = warp_sums(sums);
    of_warp += static_cast<double>(of_half + __shfl_xor_sync(kAllLanes, of_half, kBapoChunk));
  };
  for_each_piece(p.batch, cut, this_warp(), [&](int64_t, const Span& span, bool) { for_each_part(span, add_part); });
  warp_totals[threadIdx.x] = of_warp;
  __syncthreads();
  if (threadIdx.x < kBapoChunk && first_candidate + lane < all) {
    double total = 0;
    for (int i = 0; i < warps_of_block(); ++i) total += warp_totals[i * kWarp + lane];
    p.units[static_cast<int64_t>(blockIdx.x) * all + first_candidate + lane] = total;
  }
}

// One warp per candidate adds the units up.
static __global__ void __launch_bounds__(kWarp) bapo_total_kernel(BapoParams p, int64_t units) {
  const int all = candidate_count(p.candidates), candidate = blockIdx.x;
  double total = 0;
  for (int64_t unit = threadIdx.x; unit < units; unit += kWarp) total += p.units[unit * all + candidate];
  total = warp_sum(total);
  if (threadIdx.x == 0) p.sums[candidate] = total;
}

static __global__ void bapo_bounds_kernel(BapoCandidates candidates, const double* sums, double target, double eps,
                                          bool upper_first, double* bounds) {
  search_clip_bounds(candidates, sums, target, eps, upper_first, bounds);
}

}  // namespace maspo
