// Importance weights of the rollout, kept in bounds: truncated (TIS) or, outside a window, masked (IcePop,
// arXiv 2510.18855). Reference: rollout_corr_helper.py of verl 0.9.1.
#pragma once

#include "core/portable.h"

namespace maspo {

enum IsRule : int32_t { kIsAsGiven, kIsTruncate, kIsMask };

template <class V>
struct IsWeight {
  V value;
  flag_t<V> outside;
};

template <class V>
MASPO_HD IsWeight<V> bounded_is_weight(V weight, V lower, V upper, int32_t rule) {
  const auto above = weight > upper;  // NaN is not: it goes on, and is seen
  if (rule == kIsTruncate) return {select(above, upper, weight), above};
  const flag_t<V> outside = above | (weight < lower);
  return {select(outside, V(scalar_t<V>(0)), weight), outside};
}

}  // namespace maspo
