// The importance ratio that all methods share.
#pragma once

#include "core/portable.h"

namespace maspo {

// |log_prob - old_log_prob| is clamped here before exp, as in verl's policy losses.
constexpr double kMaxLogRatio = 20.0;

template <class V>
struct Ratio {
  V log_prob;         // as it came, for a loss whose gradient does not go through the ratio
  V log_ratio;        // x = clip(d, -20, 20), d = log_prob - old_log_prob
  V ratio;            // rho = exp(x)
  flag_t<V> inside;   // -20 <= d <= 20, bounds included: there d rho / d log_prob = rho, elsewhere 0 (NaN: false)
};

// kClampLow = false leaves d unclamped from below, and x = d: DAC's reference clamps nothing. Above 20 the ratio is that at 20
// all the same, but x is not.
template <bool kClampLow, class V>
MASPO_HD Ratio<V> ratio_of(V log_prob, V old_log_prob) {
  const V high = V(scalar_t<V>(kMaxLogRatio));
  const V low = V(scalar_t<V>(-kMaxLogRatio));
  const V difference = log_prob - old_log_prob;
  Ratio<V> r;
  r.log_prob = log_prob;
  if (kClampLow) {
    r.log_ratio = clamp(difference, low, high);
    r.ratio = exp_of_within_80(r.log_ratio);
    r.inside = r.log_ratio == difference;
  } else {
    r.log_ratio = difference;
    r.ratio = exp_of_at_most_80(at_most(difference, high));
    r.inside = difference <= high;
  }
  return r;
}

}  // namespace maspo
