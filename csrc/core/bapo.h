// BAPO (arXiv 2510.18927): PPO's clip (clip.h) with bounds that are searched until the positive tokens weigh enough.
//
//   P(high) = sum over A > 0 of  A min(rho, high)      q = P / (N + eps), +inf where N <= 0
//   N(low)  = sum over A < 0 of -A max(rho, low)
//
// The reference (recipe/bapo/policy_loss.py of the authors' verl fork) raises low by steps until q >= target, then high;
// the paper's Algorithm 1 raises high first. Since P depends on high only and N on low only, every step's q follows from
// the sums P and N at all candidates, which one pass over the tokens gives: no step needs the data, or the host.
// Raising low only ever lowers q, so where the start does not meet the target, low ends at its maximum.
#pragma once

#include "core/ratio.h"

namespace maspo {

constexpr int kMaxBapoCandidates = 128;  // of both bounds together

struct BapoCandidates {
  int32_t lower_count, upper_count;  // at least 1 each
  double bound[kMaxBapoCandidates];  // the lower ones, then the upper ones, each in the order of the search
};

// A token's part of the sums, for all candidates.
template <class V>
struct BapoToken {
  V ratio;
  V positive, negative;  // mask * A where A >= 0 (or NaN, which ends the search), mask * -A where A < 0; else 0
};

template <class V>
MASPO_HD BapoToken<V> bapo_token(V mask, V log_prob, V old_log_prob, V advantage) {
  const V zero = V(scalar_t<V>(0));
  const auto valid = mask != zero, neg = advantage < zero;
  BapoToken<V> token;
  token.ratio = ratio_of<true>(select(valid, log_prob, zero), select(valid, old_log_prob, zero)).ratio;
  token.positive = select(valid & !neg, mask * advantage, zero);
  token.negative = select(valid & neg, mask * -advantage, zero);
  return token;
}

template <class V>
MASPO_HD V bapo_term(const BapoToken<V>& token, V bound, bool is_upper) {
  return is_upper ? token.positive * at_most(token.ratio, bound) : token.negative * at_least(token.ratio, bound);
}

// What the search found: the bounds and the last q. Also three statistics.
enum ClipBound { kClipBoundLow, kClipBoundHigh, kPosNegRatio, kNumClipBounds };

MASPO_HD void search_clip_bounds(const BapoCandidates& c, const double* sums, double target, double eps,
                                 bool upper_first, double* found) {
  int lower = 0, upper = 0;
  const double* positive = sums + c.lower_count;
  double q = 0;
  for (int stage = 0; stage < 2; ++stage) {
    const bool moves_upper = (stage == 0) == upper_first;
    int& step = moves_upper ? upper : lower;
    const int last = (moves_upper ? c.upper_count : c.lower_count) - 1;
    for (;;) {
      q = sums[lower] <= 0 ? Limits<double>::infinity() : positive[upper] / (sums[lower] + eps);
      if (!(q < target) || step == last) break;  // a NaN ends the search
      ++step;
    }
  }
  found[kClipBoundLow] = c.bound[lower];
  found[kClipBoundHigh] = c.bound[c.lower_count + upper];
  found[kPosNegRatio] = q;
}

}  // namespace maspo
