// A warp's way through its groups of steps: that of PlainSteps for a large batch of which everything lies side by side and is
// aligned, with a mask of bytes.
#pragma once

#include "cuda/groups.h"
#include "cuda/plain_steps.cuh"

namespace maspo {

// Whether a launch that can take PlainSteps with a ByteMask can take these.
MASPO_HD bool takes_groups(const LossParams& p, const Grid& grid) {
  const auto aligned = [](const View& v) { return is_aligned<sizeof(uint4)>(v.data); };
  return has_groups(p.batch, grid) && lies_as_one_row(p) && aligned(p.log_prob) && aligned(p.old_log_prob) &&
         aligned(p.advantages) && aligned(p.response_mask);
}

template <class Format, class Hyper>
class GroupSteps : public PlainSteps<Format, Hyper, ByteMask> {
  using Plain = PlainSteps<Format, Hyper, ByteMask>;
  using typename Plain::Inputs;
  using typename Plain::Words;
  using Plain::p;

 public:
  using typename Plain::S;
  using typename Plain::Sums;
  using typename Plain::T;

  __device__ __forceinline__ GroupSteps(const LossParams& params, const GroupCut& cut)
      : Plain(params),
        cut_(cut),
        mask_(params.response_mask, 0),
        end_(bounded((blockIdx.x + 1) * cut.of_block * kGroupTokens, 0, params.batch.tokens)) {}

  // Calls each(group) after every one of this warp's. While a step is worked on, the inputs of the next two and the mask of
  // the next group are on their way.
  template <class Each>
  __device__ __forceinline__ void run(Sums& sums, Each each) {
    int place = threadIdx.x / kWarp;
    int64_t token = (blockIdx.x * cut_.of_block + place) * kGroupTokens;
    if (token >= end_) return;
    int64_t next = token + tokens_to_next_group(cut_, place);
    words_ = mask_.fetch_whole(token);
    know(next);
    Ahead even, odd;  // two, and each in its place: what is on its way cannot go to another register without being waited for
    read(token, even);
    read(token + kStepTokens, odd);
#pragma unroll 1
    while (token < end_) {
      const int64_t after_next = next + tokens_to_next_group(cut_, place);
      work(token, even, sums, [&] { read(token + 2 * kStepTokens, even); });
      work(token + kStepTokens, odd, sums, [&] { read(token + 3 * kStepTokens, odd); });
      know(after_next);
      work(token + 2 * kStepTokens, even, sums, [&] { read(next, even); });
      work(token + 3 * kStepTokens, odd, sums, [&] { read(next + kStepTokens, odd); });
      each(token / kGroupTokens);
      token = next;
      next = after_next;
    }
  }

 private:
  static_assert(ByteMask::kSteps == kGroupSteps, "a group's mask is fetched as a whole");

  // What is known of a step before it is worked on; the inputs where all of the mask counts.
  struct Ahead {
    bool ones, zeros;  // of the mask: all of the warp's tokens count, none of this lane's does
    Inputs inputs;
  };

  __device__ __forceinline__ static int lane_token() { return threadIdx.x % kWarp * kLane; }

  // Takes the mask that is on its way to be that of the steps that are read next, and fetches that of the group at `later`.
  __device__ __forceinline__ void know(int64_t later) {
    flags_ = mask_.after(words_);
    words_ = {};
    if (later < end_) words_ = mask_.fetch_whole(later);
  }

  // Of a step that is not read the inputs stay what they were. To leave them undefined saves copies of registers, and takes a
  // tenth longer: these wait for what is on its way before more is asked for (docs/performance.md, What binds forward).
  __device__ __forceinline__ void read(int64_t step, Ahead& ahead) {
    const auto words_at = [&](const View& v) {
      return *reinterpret_cast<const Words*>(static_cast<const T*>(v.data) + step + lane_token());
    };
    ahead.ones = flags_.ones();
    ahead.zeros = flags_.zeros();
    if (ahead.ones) ahead.inputs = {words_at(p.log_prob), words_at(p.old_log_prob), words_at(p.advantages)};
    flags_ = flags_.next();
  }

  // On a step, while read_next() reads another in its place.
  template <class ReadNext>
  __device__ __forceinline__ void work(int64_t step, const Ahead& ahead, Sums& sums, ReadNext read_next) {
    const Ahead now = ahead;
    read_next();
    const int64_t token = step + lane_token();
    S grads[kLane] = {};
    if (!now.ones || !this->unmasked(now.inputs, sums, grads)) {
      if (!now.zeros) this->masked({0, 0, p.batch.tokens, 0}, token, kLane, sums, grads);
    }
    if (p.dlogp != nullptr) store_scaled(static_cast<S*>(p.dlogp) + token, kLane, grads, this->scale_);
  }

  const GroupCut& cut_;
  const ByteMask mask_;
  const int64_t end_;            // of the block's stretch
  ByteMask::Flags flags_ = {};   // of the group's steps from the next one to be read on
  ByteMask::Words words_ = {};   // of the group after it
};

}  // namespace maspo
