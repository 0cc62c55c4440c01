// Steps through the batches that most are: log-probabilities and advantages of one dtype, neighbouring tokens side by side,
// and none of the options that read or ask for more. Most of such a batch's steps have no masked token, or none else.
#pragma once

#include "cuda/async_copy.cuh"
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

  // Of shared memory, for each warp: the inputs of so many steps, of which all but the one that is worked on are on their way.
  static constexpr int kStages = 4;
  static constexpr int kSharedOfWarp = kStages * 3 * kWarp * static_cast<int>(sizeof(T)) * kLane;

  __device__ __forceinline__ PlainSteps(const LossParams& params, void* shared)
      : p(params),
        h(without_options(hyper_of<Hyper>(params))),
        slots(static_cast<Words*>(shared) + threadIdx.x / kWarp * (kStages * 3 * kWarp) + threadIdx.x % kWarp) {
    o.clip_ratio_c = static_cast<S>(params.options.clip_ratio_c);
  }

  __device__ __forceinline__ void run(const Span& part, Sums& sums) const {
    const int64_t first = part.first + threadIdx.x % kWarp * kLane;
    const int left = static_cast<int>(part.last - first);  // tokens from this lane's first one on, which may be below 0
    const Reader read(p, part, first);
    const MaskReader mask(p.response_mask, offset_of(p.response_mask, p.batch, part, first));
    S* const dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + part.start + first;
    const auto fetch = [&](int col) { return left - col >= kLane ? mask.fetch(col) : MaskWords(); };
    // Two bits for each step from the next one on: whether all of its tokens count, in the whole warp, and whether none of
    // this lane's do.
    constexpr unsigned kOnes = 1, kZeros = 2;
    unsigned states = 0;
    const auto start = [&](const MaskWords& words, int col, int stage, int ahead) {
      const bool all = __all_sync(kAllLanes, mask.all_ones(words));
      states |= ((all ? kOnes : 0) | (mask.all_zeros(words) ? kZeros : 0)) << 2 * ahead;
      if (all) read.copy(col, slots + stage * (3 * kWarp));
      end_copies();
    };
    MaskWords words = fetch(0);
#pragma unroll 1
    for (int k = 0; k < kStages; ++k) {
      const MaskWords next = fetch((k + 1) * static_cast<int>(kStepTokens));
      start(words, k * static_cast<int>(kStepTokens), k, k);
      words = next;
    }
    const int tokens = static_cast<int>(part.last - part.first);
    int stage = 0;
#pragma unroll 1
    for (int col = 0; col < tokens; col += kStepTokens) {
      const int count = static_cast<int>(bounded(left - col, 0, kLane));
      S grads[kLane] = {};
      bool done = (states & kZeros) != 0 && count == kLane;
      wait_for_copies<kStages - 1>();
      if ((states & kOnes) != 0) done = unmasked(slots + stage * (3 * kWarp), sums, grads);
      if (!done) masked(part, first + col, count, sums, grads);
      if (dlogp != nullptr) store_pack(dlogp + col, count, grads);
      states >>= 2;
      start(words, col + kStages * static_cast<int>(kStepTokens), stage, kStages - 1);
      words = fetch(col + (kStages + 1) * static_cast<int>(kStepTokens));
      stage = (stage + 1) % kStages;
    }
  }

 private:
  using Words = typename Word<sizeof(T) * kLane>::type;
  enum Input { kLogProb, kOldLogProb, kAdvantage };  // each has a slot for each lane, of every stage
  Words* const slots;

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

    // Those of columns col to col + 3, from the first one on.
    __device__ __forceinline__ void copy(int col, Words* slot) const {
      copy_four(log_prob_ + col, slot + kLogProb * kWarp);
      copy_four(old_log_prob_ + col, slot + kOldLogProb * kWarp);
      if (one_advantage_) {
        slot[kAdvantage * kWarp] = words_of({*advantages_, *advantages_, *advantages_, *advantages_});
      } else {
        copy_four(advantages_ + col, slot + kAdvantage * kWarp);
      }
    }

   private:
    __device__ __forceinline__ void copy_four(const T* at, Words* slot) const {
      if (__builtin_expect(aligned_, 1)) {
        copy_async(slot, reinterpret_cast<const Words*>(at));
      } else {
        *slot = words_of({at[0], at[1], at[2], at[3]});
      }
    }
    __device__ __forceinline__ static Words words_of(const Pack<T, kLane>& four) {
      Words words;
      memcpy(&words, &four, sizeof(words));
      return words;
    }
    __device__ __forceinline__ static const T* token(const LossParams& p, const View& v, const Span& part, int64_t col) {
      return static_cast<const T*>(v.data) + offset_of(v, p.batch, part, col);
    }

    const T *log_prob_, *old_log_prob_, *advantages_;
    bool one_advantage_, aligned_;
  };

  // Of four tokens that count, each as 1; does nothing and returns false where the warp has a number that is not finite.
  __device__ __forceinline__ bool unmasked(const Words* slot, Sums& sums, S (&grads)[kLane]) const {
    const Words log_prob = slot[kLogProb * kWarp], old_log_prob = slot[kOldLogProb * kWarp];
    const Words advantage = slot[kAdvantage * kWarp];
    TokenInputs<S> in[kLane];
    S probe = 0;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      in[i] = {S(1), number_of(log_prob, i), number_of(old_log_prob, i), number_of(advantage, i), S(1), S(0), S(0)};
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
    TokenInputs<S> in[kLane];
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      in[i] = {mask[i], log_prob[i], old_log_prob[i], advantage[i], S(1), S(0), S(0)};
    }
    visit_four(in, h, o, sums, grads);
  }
};

}  // namespace maspo
