// Steps through the batches that most are: log-probabilities and advantages of one dtype, neighbouring tokens side by side,
// and none of the options that read or ask for more. Most of such a batch's steps have no masked token, or none else.
#pragma once

#include "cuda/mask_words.cuh"
#include "cuda/steps.cuh"

namespace maspo {

// Whether a launch can take PlainSteps for this dtype.
template <class Hyper>
MASPO_HD bool is_plain(const LossParams& p, DType dtype) {
  const auto beside = [&](const View& v) { return v.dtype == dtype && v.col_stride == 1; };
  const bool more = p.rollout_is_weights.data != nullptr || p.options.has_entropy || p.options.has_ref ||
                    p.options.is_rule != kIsAsGiven || (p.options.dual_clip && !Hyper::kMayClipTwice) ||
                    has_options(Hyper::from(p.hyper));
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
    o.dual_clip = Hyper::kMayClipTwice && params.options.dual_clip;
  }

  // While a step is worked on, the inputs of the next one and the mask of the one after it are on their way.
  __device__ __forceinline__ void run(const Span& part, Sums& sums) const {
    const int64_t first = part.first + threadIdx.x % kWarp * kLane;
    const int left = static_cast<int>(part.last - first);  // tokens from this lane's first one on, which may be below 0
    const Reader read(p, part, first);
    const MaskReader mask(p.response_mask, offset_of(p.response_mask, p.batch, part, first));
    S* const dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + part.start + first;
    const auto fetch = [&](int col) { return left - col >= kLane ? mask.fetch(col) : MaskWords(); };
    MaskWords words = fetch(0);
    bool ones = __all_sync(kAllLanes, mask.all_ones(words)), zeros = mask.all_zeros(words);
    Inputs inputs = {};
    if (ones) inputs = read.at(0);
    words = fetch(kStepTokens);
    const int tokens = static_cast<int>(part.last - part.first);
#pragma unroll 1
    for (int col = 0; col < tokens; col += kStepTokens) {
      const bool next_ones = __all_sync(kAllLanes, mask.all_ones(words)), next_zeros = mask.all_zeros(words);
      Inputs next = {};
      if (next_ones) next = read.at(col + kStepTokens);
      words = fetch(col + 2 * kStepTokens);
      const int count = static_cast<int>(bounded(left - col, 0, kLane));
      S grads[kLane] = {};
      bool done = zeros && count == kLane;
      if (ones) done = unmasked(inputs, sums, grads);
      if (!done) masked(part, first + col, count, sums, grads);
      if (dlogp != nullptr) store_pack(dlogp + col, count, grads);
      ones = next_ones;
      zeros = next_zeros;
      inputs = next;
    }
  }

 private:
  // As they came: taken apart at once, they would be waited for.
  using Words = typename Word<sizeof(T) * kLane>::type;
  struct Inputs {
    Words log_prob, old_log_prob, advantage;
  };

  __device__ __forceinline__ static Words words_of(const Pack<T, kLane>& four) {
    Words words;
    memcpy(&words, &four, sizeof(words));
    return words;
  }
  __device__ __forceinline__ static S number_of(const Words& words, int i) {
    Pack<T, kLane> four;
    memcpy(&four, &words, sizeof(words));
    return Format::number(four.value[i]);
  }

  // This lane's inputs of a part.
  class Reader {
   public:
    __device__ __forceinline__ Reader(const LossParams& p, const Span& part, int64_t first)
        : log_prob_(token(p, p.log_prob, part, first)),
          old_log_prob_(token(p, p.old_log_prob, part, first)),
          advantages_(token(p, p.advantages, part, first)),
          one_advantage_(p.advantages.col_stride == 0),
          aligned_(aligned_for_pack<kLane>(log_prob_) && aligned_for_pack<kLane>(old_log_prob_) &&
                   (one_advantage_ || aligned_for_pack<kLane>(advantages_))) {}

    // Of columns col to col + 3, from the first one on.
    __device__ __forceinline__ Inputs at(int col) const {
      return {four(log_prob_ + col), four(old_log_prob_ + col),
              one_advantage_ ? words_of({*advantages_, *advantages_, *advantages_, *advantages_}) : four(advantages_ + col)};
    }

   private:
    __device__ __forceinline__ Words four(const T* at) const {
      if (__builtin_expect(aligned_, 1)) return *reinterpret_cast<const Words*>(at);
      return words_of({at[0], at[1], at[2], at[3]});
    }
    __device__ __forceinline__ static const T* token(const LossParams& p, const View& v, const Span& part, int64_t col) {
      return static_cast<const T*>(v.data) + offset_of(v, p.batch, part, col);
    }

    const T *log_prob_, *old_log_prob_, *advantages_;
    bool one_advantage_, aligned_;
  };

  // Of four tokens that count, each as 1; does nothing and returns false where the warp has a number that is not finite.
  __device__ __forceinline__ bool unmasked(const Inputs& inputs, Sums& sums, S (&grads)[kLane]) const {
    TokenInputs<S> in[kLane];
    S probe = 0;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      in[i] = {S(1), number_of(inputs.log_prob, i), number_of(inputs.old_log_prob, i), number_of(inputs.advantage, i),
               S(1), S(0), S(0)};
      // Both log-probabilities are finite where their difference is.
      probe = S(0) * (in[i].log_prob - in[i].old_log_prob) + (S(0) * in[i].advantage + probe);
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
    // Two at a time, so that it takes no more registers than the path above: the next two come to where the first two were.
    constexpr int kHalf = kLane / 2;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const TokenInputs<S> in = {mask[i], log_prob[i], old_log_prob[i], advantage[i], S(1), S(0), S(0)};
        const TokenOutputs<S> out = visit_token(in, h, o, sums.stats);
        sums.loss += out.loss;
        grads[i] = grads[i + kHalf];
        grads[i + kHalf] = out.dlogp;
        mask[i] = mask[i + kHalf];
        log_prob[i] = log_prob[i + kHalf];
        old_log_prob[i] = old_log_prob[i + kHalf];
        advantage[i] = advantage[i + kHalf];
      }
    }
  }
};

}  // namespace maspo
