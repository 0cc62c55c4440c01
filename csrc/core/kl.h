// Estimates of KL(policy || reference) per token, d = log_prob - ref_log_prob. References: kl_penalty of verl 0.9.1; for
// k3_unbounded GRPOTrainer of TRL 1.16.
#pragma once

#include "core/portable.h"

namespace maspo {

enum KlType : int32_t { kK1, kAbs, kK2, kK3, kK3Unbounded, kNumKlTypes };

constexpr const char* kKlTypeNames[kNumKlTypes] = {"k1", "abs", "k2", "k3", "k3_unbounded"};

template <class V>
struct Kl {
  V value;
  V slope;  // d value / d log_prob
};

// verl's bounds of k3 ("low_var_kl").
constexpr double kMaxK3LogRatio = 20.0;
constexpr double kMaxK3 = 10.0;

template <class V>
MASPO_HD Kl<V> kl_of(V log_prob, V ref_log_prob, int32_t type, bool straight_through) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1));
  const V d = log_prob - ref_log_prob;
  Kl<V> kl;
  if (type == kK1) {
    kl = {d, one};
  } else if (type == kAbs) {
    kl = {abs_of(d), select(d > zero, one, select(d < zero, -one, zero))};
  } else if (type == kK2) {
    kl = {V(S(0.5)) * d * d, d};
  } else {
    const bool bounded = type == kK3;
    const V bound = V(S(bounded ? kMaxK3LogRatio : Limits<double>::infinity()));
    const V highest = V(S(bounded ? kMaxK3 : Limits<double>::infinity()));
    const V x = clamp(-d, -bound, bound);
    const V e = exp_of(x);
    const V value = e - x - one;
    const auto inside = (d >= -bound) & (d <= bound) & (value <= highest);
    kl = {at_most(value, highest), select(inside, one - e, zero)};
  }
  // The "+" forms: the value of the estimate with the gradient of k2, the one whose expectation is that of the KL.
  if (straight_through) kl.slope = d;
  return kl;
}

}  // namespace maspo
