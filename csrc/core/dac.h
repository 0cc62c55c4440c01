// DAC, the dynamic-adaptive clip of DCPO (arXiv 2509.02333): bounds that solve |rho - 1| rho pi_old <= eps.
//
//   low  = 1/2 + 1/2 sqrt(max(1 - 4 eps_low / pi_old, 0))
//   high = min(1/2 + 1/2 sqrt(1 + 4 eps_high / pi_old), max(clip_ratio_c, 10))
//
// Reference: loss_mode "dcpo", clip_type "dynamic" of the authors' verl fork. Its log-ratio is not clamped; here it is from
// above, where the token is clipped anyway.
#pragma once

#include "core/clip.h"

namespace maspo {

template <class S>
struct DacHyper {
  static constexpr bool kClampLow = false, kMayClipTwice = true;
  static constexpr int kMeans = 2, kCounts = 0;
  S eps_low, eps_high, cap;

  MASPO_HD DacHyper from(const double* v) {
    return {static_cast<S>(v[0]), static_cast<S>(v[1]), static_cast<S>(v[2] > 10.0 ? v[2] : 10.0)};
  }
  MASPO_HD void finish(const double* sums, double tokens, double* stats) {
    stats[0] = mean_or(sums[0], tokens, 0.0);
    stats[1] = mean_or(sums[1], tokens, 0.0);
  }
};

template <class V>
MASPO_HD MethodToken<V> method_token(const Ratio<V>& r, V old_log_prob, V advantage, const DacHyper<scalar_t<V>>& h) {
  using S = scalar_t<V>;
  const V half = V(S(0.5)), one = V(S(1));
  // 4 / pi_old = exp(log 4 - log pi_old). Stopped at e^80, where both bounds have long reached their limits: so eps = 0 is
  // not 0 * inf, and no sum overflows.
  const V four_over_pi = V(S(4)) * weight_exp(at_most(-old_log_prob, V(S(80))));
  const V low = half + half * sqrt_of(at_least(one - V(h.eps_low) * four_over_pi, V(S(0))));
  const V high = at_most(half + half * sqrt_of(one + V(h.eps_high) * four_over_pi), V(h.cap));
  MethodToken<V> token = clip_token(r, advantage, low, high);
  token.means[0] = low;
  token.means[1] = high;
  return token;
}

}  // namespace maspo
