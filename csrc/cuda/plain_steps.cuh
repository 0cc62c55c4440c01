// Steps through the batches that most are: log-probabilities and advantages of one dtype, neighbouring tokens side by side,
// and none of the options that read or ask for more. Most of such a batch's steps have no masked token, or none else.
#pragma once

#include "cuda/mask_words.cuh"
#include "cuda/steps.cuh"

namespace maspo {

// Whether a launch can take PlainSteps for this dtype.
template <class Hyper>
bool is_plain(const LossParams& p, DType dtype) {
  const auto beside = [&](const View& v) { return v.dtype == dtype && v.col_stride == 1; };
  const bool more = p.rollout_is_weights.data != nullptr || p.options.has_entropy || p.options.has_ref ||
                    p.options.dual_clip || p.options.is_rule != kIsAsGiven || has_options(Hyper::from(p.hyper));
  return !more && beside(p.log_prob) && beside(p.old_log_prob) && p.advantages.dtype == dtype &&
         (p.advantages.col_stride == 1 || p.advantages.col_stride == 0) && is_of_words(p.response_mask);
}

template <class Format, class Hyper>
struct PlainSteps {
  using T = typename Format::Stored;
  using S = typename Format::Arithmetic;
  using Number = S;
  using Sums = PieceSums<S, Hyper>;
  const LossParams& p;
  const Hyper h;
  Options<S> o = {};

  __device__ __forceinline__ explicit PlainSteps(const LossParams& params)
      : p(params), h(without_options(hyper_of<Hyper>(params))) {
    o.clip_ratio_c = static_cast<S>(params.options.clip_ratio_c);
  }

  __device__ __forceinline__ void run(const Span& span, Sums& sums) const {
    const T* const log_prob = first_token(p.log_prob, span);
    const T* const old_log_prob = first_token(p.old_log_prob, span);
    const T* const advantages = first_token(p.advantages, span);
    const bool one_advantage = p.advantages.col_stride == 0;
    const bool aligned = aligned_for_pack<kLane>(log_prob) && aligned_for_pack<kLane>(old_log_prob) &&
                         (one_advantage || aligned_for_pack<kLane>(advantages));
    S* const dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + span.start;
    const MaskReader mask(p.response_mask, offset_of(p.response_mask, p.batch, span, 0));
    const auto fetch = [&](int64_t col) { return span.last - col >= kLane ? mask.fetch(col) : MaskWords(); };
    MaskWords next = fetch(span.first + threadIdx.x % kWarp * kLane);
    for_each_four(span, [&](int64_t col, int count) {
      const MaskWords words = next;
      next = fetch(col + kStepTokens);  // on its way meanwhile
      S grads[kLane] = {};
      bool done = count == kLane && mask.all_zeros(words);
      if (__all_sync(kAllLanes, mask.all_ones(words))) {
        const auto a = one_advantage ? pack_of(*advantages) : load_words(advantages + col, aligned);
        done = unmasked(load_words(log_prob + col, aligned), load_words(old_log_prob + col, aligned), a, sums, grads);
      }
      if (!done) masked(span, col, count, sums, grads);
      if (dlogp != nullptr) store_pack(dlogp + col, count, grads);
    });
  }

 private:
  using Four = Pack<T, kLane>;

  __device__ __forceinline__ const T* first_token(const View& v, const Span& span) const {
    return static_cast<const T*>(v.data) + offset_of(v, p.batch, span, 0);
  }

  // Of four tokens that count, each as 1; does nothing and returns false where the warp has a number that is not finite.
  __device__ __forceinline__ bool unmasked(const Four& log_prob, const Four& old_log_prob, const Four& advantage, Sums& sums,
                                           S (&grads)[kLane]) const {
    TokenInputs<S> in[kLane];
    S probe = 0;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      in[i] = {S(1), Format::number(log_prob.value[i]), Format::number(old_log_prob.value[i]),
               Format::number(advantage.value[i]), S(1), S(0), S(0)};
      probe = S(0) * in[i].log_prob + (S(0) * in[i].old_log_prob + (S(0) * in[i].advantage + probe));
    }
    if (!__all_sync(kAllLanes, probe == probe)) return false;
    visit_four<true>(in, h, o, sums, grads);
    return true;
  }

  __device__ __forceinline__ void masked(const Span& span, int64_t col, int count, Sums& sums, S (&grads)[kLane]) const {
    S mask[kLane] = {}, log_prob[kLane] = {}, old_log_prob[kLane] = {}, advantage[kLane] = {};
    const auto load = [&](const View& v, S(&out)[kLane]) {
      const T* const four = static_cast<const T*>(v.data) + offset_of(v, p.batch, span, col);
      load_as(four, v.col_stride, count, out, [](T value) { return Format::number(value); });
    };
    load_four(p.response_mask, offset_of(p.response_mask, p.batch, span, col), count, mask);
    if (!any_token(mask)) return;
    load(p.log_prob, log_prob);
    load(p.old_log_prob, old_log_prob);
    load(p.advantages, advantage);
    TokenInputs<S> in[kLane];
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      in[i] = {mask[i], log_prob[i], old_log_prob[i], advantage[i], S(1), S(0), S(0)};
    }
    visit_four(in, h, o, sums, grads);
  }
};

}  // namespace maspo
