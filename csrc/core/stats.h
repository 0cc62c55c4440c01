// The sums that one pass keeps, and the statistics made of them. Names and order: maspo_ext/stats.py.
#pragma once

#include "core/maspo.h"

namespace maspo {

// Every sum is over unmasked tokens and weighted by the mask, but for kNonfinite, which counts.
enum Sum {
  kTokens,
  kLogRatio,
  kRatio,
  kSigma,
  kClip,
  kClipLower,
  kGatedPos,
  kGatedNeg,
  kGatePos,
  kGateNeg,
  kClamped,
  kNonfinite,
  kNumSums
};

enum Stat {
  kStatClipfrac,
  kStatKl,
  kStatClipfracLower,
  kStatGateMeanPos,
  kStatGateMeanNeg,
  kStatGatedFracPos,
  kStatGatedFracNeg,
  kStatSigmaMean,
  kStatRatioMin,
  kStatRatioMean,
  kStatRatioMax,
  kStatClampedFrac,
  kStatNonfinite,
  kNumStats
};

template <class V>
struct StatSums {
  V sum[kNumSums];
  V ratio_min, ratio_max;  // of the finite ratios; max < min where there was none
};

template <class V>
MASPO_HD StatSums<V> no_sums() {
  StatSums<V> s;
  for (int i = 0; i < kNumSums; ++i) s.sum[i] = V(scalar_t<V>(0));
  s.ratio_min = V(Limits<scalar_t<V>>::max);
  s.ratio_max = V(scalar_t<V>(-1));
  return s;
}

template <class S>
MASPO_HD void add_sums(StatSums<S>& total, const StatSums<S>& part) {
  for (int i = 0; i < kNumSums; ++i) total.sum[i] += part.sum[i];
  total.ratio_min = part.ratio_min < total.ratio_min ? part.ratio_min : total.ratio_min;
  total.ratio_max = part.ratio_max > total.ratio_max ? part.ratio_max : total.ratio_max;
}

// `tokens` is the sum of the mask over the whole batch. A batch without tokens has all statistics 0; a gate mean
// without gated tokens is 1, an open gate.
MASPO_HD void finish_stats(const StatSums<double>& s, double* stats) {
  const double tokens = s.sum[kTokens];
  const double per_token = tokens == 0 ? 0.0 : 1.0 / tokens;
  const double open_gate = tokens == 0 ? 0.0 : 1.0;
  stats[kStatClipfrac] = s.sum[kClip] * per_token;
  stats[kStatKl] = (0.0 - s.sum[kLogRatio]) * per_token;  // not -x: an on-policy batch has KL 0, not -0
  stats[kStatClipfracLower] = s.sum[kClipLower] * per_token;
  stats[kStatGateMeanPos] = s.sum[kGatedPos] == 0 ? open_gate : s.sum[kGatePos] / s.sum[kGatedPos];
  stats[kStatGateMeanNeg] = s.sum[kGatedNeg] == 0 ? open_gate : s.sum[kGateNeg] / s.sum[kGatedNeg];
  stats[kStatGatedFracPos] = s.sum[kGatedPos] * per_token;
  stats[kStatGatedFracNeg] = s.sum[kGatedNeg] * per_token;
  stats[kStatSigmaMean] = s.sum[kSigma] * per_token;
  const bool any_ratio = s.ratio_max >= s.ratio_min;
  stats[kStatRatioMin] = any_ratio ? s.ratio_min : 0.0;
  stats[kStatRatioMean] = s.sum[kRatio] * per_token;
  stats[kStatRatioMax] = any_ratio ? s.ratio_max : 0.0;
  stats[kStatClampedFrac] = s.sum[kClamped] * per_token;
  stats[kStatNonfinite] = s.sum[kNonfinite];
}

}  // namespace maspo
