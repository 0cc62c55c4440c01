// The sums that one pass keeps, and the statistics made of them. Names and order: maspo_ext/stats.py.
#pragma once

#include "core/bapo.h"
#include "core/methods.h"

namespace maspo {

// Every sum is over unmasked tokens and weighted by the mask, but for kNonfinite, which counts.
enum Sum {
  kTokens,
  kLogRatio,
  kRatio,
  kClip,
  kClipLower,
  kClamped,
  kNonfinite,
  kEntropyBonus,
  kRefKl,
  kIsOutside,
  kNumSums
};

enum Stat {
  kStatClipfrac,
  kStatKl,
  kStatClipfracLower,
  kStatMethod,  // kMethodStats of them, as the method says
  kStatRatioMin = kStatMethod + kMethodStats,
  kStatRatioMean,
  kStatRatioMax,
  kStatClampedFrac,
  kStatNonfinite,
  kStatEntropyBonus,
  kStatRefKl,
  kStatIsOutside,
  kNumStats
};

// kMethodSums: those of the method that runs; where methods are stored alike, kMaxMethodSums.
template <class V, int kMethodSums = kMaxMethodSums>
struct StatSums {
  V sum[kNumSums];
  V method[kMethodSums > 0 ? kMethodSums : 1];
  V ratio_min, ratio_max;  // of the finite ratios; max < min where there was none
};

template <class V, int kMethodSums = kMaxMethodSums>
MASPO_HD StatSums<V, kMethodSums> no_sums() {
  StatSums<V, kMethodSums> s;
  const V zero = V(scalar_t<V>(0));
  for (int i = 0; i < kNumSums; ++i) s.sum[i] = zero;
  s.method[0] = zero;
  for (int i = 1; i < kMethodSums; ++i) s.method[i] = zero;
  s.ratio_min = V(Limits<scalar_t<V>>::max);
  s.ratio_max = V(scalar_t<V>(-1));
  return s;
}

MASPO_HD void add_sums(StatSums<double>& total, const StatSums<double>& part) {
  for (int i = 0; i < kNumSums; ++i) total.sum[i] += part.sum[i];
  for (int i = 0; i < kMaxMethodSums; ++i) total.method[i] += part.method[i];
  total.ratio_min = part.ratio_min < total.ratio_min ? part.ratio_min : total.ratio_min;
  total.ratio_max = part.ratio_max > total.ratio_max ? part.ratio_max : total.ratio_max;
}

// s.sum[kTokens] is the sum of the mask over the whole batch. A batch without tokens has all statistics 0.
// `finish_method` is the method's finish; `clip_bounds` is null, or what BAPO's search found: then these are its statistics.
template <class Finish>
MASPO_HD void finish_stats(const StatSums<double>& s, const double* clip_bounds, double* stats, Finish finish_method) {
  const double tokens = s.sum[kTokens];
  const double per_token = tokens == 0 ? 0.0 : 1.0 / tokens;
  stats[kStatClipfrac] = s.sum[kClip] * per_token;
  stats[kStatKl] = (0.0 - s.sum[kLogRatio]) * per_token;  // not -x: an on-policy batch has KL 0, not -0
  stats[kStatClipfracLower] = s.sum[kClipLower] * per_token;
  for (int i = 0; i < kMethodStats; ++i) stats[kStatMethod + i] = 0.0;
  if (clip_bounds == nullptr) {
    finish_method(s.method, tokens, stats + kStatMethod);
  } else {
    for (int i = 0; i < kNumClipBounds; ++i) stats[kStatMethod + i] = clip_bounds[i];
  }
  const bool any_ratio = s.ratio_max >= s.ratio_min;
  stats[kStatRatioMin] = any_ratio ? s.ratio_min : 0.0;
  stats[kStatRatioMean] = s.sum[kRatio] * per_token;
  stats[kStatRatioMax] = any_ratio ? s.ratio_max : 0.0;
  stats[kStatClampedFrac] = s.sum[kClamped] * per_token;
  stats[kStatNonfinite] = s.sum[kNonfinite];
  stats[kStatEntropyBonus] = s.sum[kEntropyBonus] * per_token;
  stats[kStatRefKl] = s.sum[kRefKl] * per_token;
  stats[kStatIsOutside] = s.sum[kIsOutside] * per_token;
}

}  // namespace maspo
