// A lane's step through a piece: four tokens. AnySteps reads inputs of any dtype and stride, with all options; PlainSteps
// (cuda/plain_steps.cuh) what most batches are, in little code with a path of its own for steps without a masked token.
#pragma once

#include "cuda/load.cuh"
#include "cuda/walk.cuh"

namespace maspo {

// What a lane adds up in a part of a piece; the least and the largest ratio are of all its pieces.
template <class S, class Hyper>
struct PieceSums {
  StatSums<S, kSumsOf<Hyper>> stats = no_sums<S, kSumsOf<Hyper>>();
  S loss = 0;

  __device__ __forceinline__ void begin_part() {
    const S least = stats.ratio_min, most = stats.ratio_max;
    *this = {};
    stats.ratio_min = least;
    stats.ratio_max = most;
  }
};

template <bool kFinite = false, class S, class Hyper>
__device__ __forceinline__ void visit_four(const TokenInputs<S> (&in)[kLane], const Hyper& h, const Options<S>& o,
                                           PieceSums<S, Hyper>& sums, S (&dlogp)[kLane]) {
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    const TokenOutputs<S> out = visit_token<kFinite>(in[i], h, o, sums.stats);
    sums.loss += out.loss;
    dlogp[i] = out.dlogp;
  }
}

template <class S>
__device__ __forceinline__ void store_scaled(S* dlogp, int count, const S (&values)[kLane], S scale) {
  S scaled[kLane];
#pragma unroll
  for (int i = 0; i < kLane; ++i) scaled[i] = values[i] * scale;
  store_pack(dlogp, count, scaled);
}

template <class S, class Hyper>
struct AnySteps {
  using Number = S;
  const LossParams& p;
  const Hyper h;
  const Options<S> o;
  const S scale;

  __device__ __forceinline__ explicit AnySteps(const LossParams& params)
      : p(params),
        h(hyper_of<Hyper>(params)),
        o(options_as<S>(params.options)),
        scale(static_cast<S>(scale_of_pass(params))) {}

  __device__ __forceinline__ void run(const Cut&, const Span& span, PieceSums<S, Hyper>& sums) const {
    for_each_four(span, [&](int64_t col, int count) {
      const auto load = [&](const View& v, S(&out)[kLane]) {
        if (v.data != nullptr) load_four(v, offset_of(v, p.batch, span, col), count, out);
      };
      S mask[kLane] = {}, dlogp[kLane] = {};
      load(p.response_mask, mask);
      if (any_token(mask)) {
        S log_prob[kLane] = {}, old_log_prob[kLane] = {}, advantage[kLane] = {}, is_weight[kLane] = {1, 1, 1, 1};
        S entropy[kLane] = {}, ref_log_prob[kLane] = {};
        load(p.log_prob, log_prob);
        load(p.old_log_prob, old_log_prob);
        load(p.advantages, advantage);
        load(p.rollout_is_weights, is_weight);
        load(p.entropy, entropy);
        load(p.ref_log_prob, ref_log_prob);
        TokenInputs<S> in[kLane];
#pragma unroll
        for (int i = 0; i < kLane; ++i) {
          in[i] = {mask[i], log_prob[i], old_log_prob[i], advantage[i], is_weight[i], entropy[i], ref_log_prob[i]};
        }
        visit_four(in, h, o, sums, dlogp);
      }
      if (p.dlogp != nullptr) store_scaled(static_cast<S*>(p.dlogp) + span.start + col, count, dlogp, scale);
    });
  }
};

}  // namespace maspo
