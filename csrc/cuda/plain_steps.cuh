// Steps through the batches that most are: log-probabilities and advantages of one dtype, neighbouring tokens side by side,
// and none of the options that read or ask for more. Most of such a batch's steps have no masked token, or none else.
#pragma once

#include "cuda/mask_words.cuh"
#include "cuda/steps.cuh"

namespace maspo {

// Whether a launch can take PlainSteps for this dtype, with this kind of mask.
template <class Hyper, class Mask>
MASPO_HD bool is_plain(const LossParams& p, DType dtype) {
  const auto beside = [&](const View& v) { return v.dtype == dtype && v.col_stride == 1; };
  const bool more = p.rollout_is_weights.data != nullptr || p.options.has_entropy || p.options.has_ref ||
                    p.options.is_rule != kIsAsGiven || (p.options.dual_clip && !Hyper::kMayClipTwice) ||
                    has_options(Hyper::from(p.hyper));
  return !more && beside(p.log_prob) && beside(p.old_log_prob) && p.advantages.dtype == dtype &&
         (p.advantages.col_stride == 1 || p.advantages.col_stride == 0) && Mask::fits(p.response_mask);
}

// Whether all rows together are a row of whole steps.
MASPO_HD bool lies_as_one_row(const LossParams& p) {
  const int64_t cols = p.batch.cols;
  return p.batch.cu_seqlens == nullptr && cols % kStepTokens == 0 && p.log_prob.row_stride == cols &&
         p.old_log_prob.row_stride == cols && p.advantages.row_stride == cols && p.advantages.col_stride == 1 &&
         p.response_mask.row_stride == cols;
}

template <class Format, class Hyper, class Mask>
class PlainSteps {
 public:
  using T = typename Format::Stored;
  using S = typename Format::Arithmetic;
  using Number = S;
  using Sums = PieceSums<S, Hyper>;

  __device__ __forceinline__ explicit PlainSteps(const LossParams& params)
      : p(params), h(without_options(hyper_of<Hyper>(params))), scale_(static_cast<S>(scale_of_pass(params))) {
    o.clip_ratio_c = static_cast<S>(params.options.clip_ratio_c);
    o.dual_clip = Hyper::kMayClipTwice && params.options.dual_clip;
  }

  // While a step is worked on, the inputs of the next one and the mask of some after it are on their way. Where all rows lie
  // side by side, also across their ends: the parts of a warp, in their order, are one run of steps.
  __device__ __forceinline__ void run(const Cut& cut, const Span& part, Sums& sums) {
    const int64_t first = part.first + threadIdx.x % kWarp * kLane;
    const int tokens = static_cast<int>(part.last - part.first);
    const int left = static_cast<int>(part.last - first);  // tokens from this lane's first one on, which may be below 0
    const bool is_one_row = lies_as_one_row(p);
    const int ahead = is_one_row ? left_of_warp(cut, part.start + part.first) : tokens;
    const Reader read(p, part, first);
    const Mask mask(p.response_mask, offset_of(p.response_mask, p.batch, part, part.first));
    S* const dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + part.start + first;
    if (!is_one_row || known_ == 0) {
      const typename Mask::Words words = mask.fetch(0, ahead);
      // A warp's only step does not wait for its mask: in such a batch time counts, and not what is read for nothing.
      const bool at_once = cut.steps_of_warp == 1 && tokens == kStepTokens;
      if (at_once) next_ = read.at(0);
      flags_ = mask.after(words);
      known_ = Mask::kSteps;
      if (!at_once && flags_.ones()) next_ = read.at(0);
      words_ = mask.fetch(kMaskTokens, ahead - kMaskTokens);
    }
#pragma unroll 1
    for (int col = 0; col < tokens; col += kStepTokens) {
      const Inputs inputs = next_;
      const bool ones = flags_.ones(), zeros = flags_.zeros();
      flags_ = flags_.next();
      if (--known_ == 0) {
        const int later = col + kStepTokens + kMaskTokens;
        flags_ = mask.after(words_);
        known_ = Mask::kSteps;
        words_ = mask.fetch(later, ahead - later);
      }
      if (flags_.ones()) next_ = read.at(col + kStepTokens);
      S grads[kLane] = {};
      int count = kLane;
      if (!ones || !unmasked(inputs, sums, grads)) {
        count = static_cast<int>(bounded(left - col, 0, kLane));
        if (!zeros || count < kLane) masked(part, first + col, count, sums, grads);
      }
      if (dlogp != nullptr) store_scaled(dlogp + col, count, grads, scale_);
    }
  }

 protected:
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

  const LossParams& p;
  const Hyper h;
  Options<S> o = {};
  const S scale_;

 private:
  static constexpr int kMaskTokens = Mask::kSteps * kStepTokens;

  // Of that row, from this token on; not more than a part and what is looked ahead.
  __device__ __forceinline__ int left_of_warp(const Cut& cut, int64_t token) const {
    const int64_t end = bounded((this_warp() + 1) * cut.steps_of_warp * kStepTokens, 0, p.batch.tokens);
    return static_cast<int>(bounded(end - token, 0, 2 * kMaxSteps * kStepTokens));
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
      const T* const advantages = advantages_ + (one_advantage_ ? 0 : col);
      if (__builtin_expect(aligned_, 1)) {
        return {whole(log_prob_ + col), whole(old_log_prob_ + col), one_advantage_ ? same(advantages) : whole(advantages)};
      }
      return {each(log_prob_ + col), each(old_log_prob_ + col), one_advantage_ ? same(advantages) : each(advantages)};
    }

   private:
    __device__ __forceinline__ static Words whole(const T* at) { return *reinterpret_cast<const Words*>(at); }
    __device__ __forceinline__ static Words each(const T* at) { return words_of({at[0], at[1], at[2], at[3]}); }
    __device__ __forceinline__ static Words same(const T* at) { return words_of({*at, *at, *at, *at}); }
    __device__ __forceinline__ static const T* token(const LossParams& p, const View& v, const Span& part, int64_t col) {
      return static_cast<const T*>(v.data) + offset_of(v, p.batch, part, col);
    }

    const T *log_prob_, *old_log_prob_, *advantages_;
    bool one_advantage_, aligned_;
  };

  // From the next step on: what is known of the mask, of how many steps, and the inputs of the next one where all of it counts.
  // Of the steps after these: the mask.
  typename Mask::Flags flags_ = {};
  int known_ = 0;
  Inputs next_ = {};
  typename Mask::Words words_ = {};
};

}  // namespace maspo
