// SAPO, Soft Adaptive Policy Optimization (arXiv 2511.20347): a sigmoid gate on both sides of ratio 1.
//
//   u = tau (rho - 1),  tau = tau_pos for A > 0, tau_neg for A <= 0
//   loss = -A (4 / tau) sigmoid(u),   d loss / d log_prob = -A rho gate,   gate = 4 sigmoid(u) sigmoid(-u) = sech^2(u / 2)
//
// At ratio 1 the gradient is PPO's, the value is -2 A / tau: not comparable with PPO's loss.
// Reference: compute_policy_loss_sapo of verl 0.9.1, whose s (1 - s) loses all digits as u grows; here it keeps them.
#pragma once

#include "core/method.h"

namespace maspo {

template <class S>
struct SapoHyper {
  static constexpr bool kClampLow = true, kMayClipTwice = false;
  static constexpr int kMeans = 2, kCounts = 2;
  S tau_pos, tau_neg;

  MASPO_HD SapoHyper from(const double* v) { return {static_cast<S>(v[0]), static_cast<S>(v[1])}; }
  MASPO_HD void finish(const double* sums, double tokens, double* stats) {
    const double open_gate = tokens == 0 ? 0.0 : 1.0;
    stats[0] = mean_or(sums[0], sums[2], open_gate);
    stats[1] = mean_or(sums[1], sums[3], open_gate);
  }
};

template <class V>
MASPO_HD MethodToken<V> method_token(const Ratio<V>& r, V, V advantage, const SapoHyper<scalar_t<V>>& h) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1)), four = V(S(4));
  const auto pos = advantage > zero, neg = advantage < zero;
  const V tau = select(pos, V(h.tau_pos), V(h.tau_neg));
  const V u = tau * (r.ratio - one);
  const V e = weight_exp(-abs_of(u));  // in (0, 1]: neither overflow nor cancellation
  const V sigmoid = quotient(select(u < zero, e, one), one + e);
  const V gate = quotient(four * e, (one + e) * (one + e));
  MethodToken<V> token;
  token.loss = -advantage * quotient(four, tau) * sigmoid;
  token.dloss = select(r.inside, -advantage * r.ratio * gate, zero);
  token.clipped = never<V>();
  token.means[0] = select(pos, gate, zero);
  token.means[1] = select(neg, gate, zero);
  token.counts[0] = pos;
  token.counts[1] = neg;
  return token;
}

}  // namespace maspo
