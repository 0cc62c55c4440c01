// MASPO (arXiv 2602.17550): a Gaussian gate on the ratio instead of a clip.
//
//   sigma = clip(sigma_base / pi_old^alpha, sigma_base, sigma_high) * risk(A)
//   risk(A) = clip(1 + beta_pos A, adv_low, adv_high)        for A > 0
//             clip(1 / (1 - beta_neg A), adv_low, adv_high)  for A <= 0
//   gate  = exp(-(rho - 1)^2 / (2 sigma^2))  where the ratio overshoots (A > 0, rho > 1 or A < 0, rho < 1), else 1
//   loss  = -A gate rho
//
// sigma is a standard deviation. Reference: compute_policy_loss, ratio_mode "maspo", of the authors' verl fork.
#pragma once

#include "core/ratio.h"

namespace maspo {

template <class S>
struct MaspoHyper {
  S sigma_base, alpha, sigma_high, adv_low, adv_high, beta_pos, beta_neg;
  bool gate_gradient;  // differentiate through the gate; the reference treats it as a constant
};

template <class V>
struct MaspoToken {
  using Flag = decltype(V() < V());
  V loss;
  V dloss;  // d loss / d log_prob
  V sigma;
  V gate;
  Flag gated_pos, gated_neg;  // the two overshooting quadrants
};

template <class V>
MASPO_HD MaspoToken<V> maspo_token(const Ratio<V>& r, V old_log_prob, V advantage, const MaspoHyper<scalar_t<V>>& h) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1));
  MaspoToken<V> token;

  // 1 / pi_old^alpha as exp(-alpha log pi_old): overflow to inf ends at sigma_high, which is the right answer. The lower
  // bound keeps alpha = 0 with old_log_prob = -inf from being 0 * inf.
  const V finite_old = select(old_log_prob < V(-Limits<S>::max), V(-Limits<S>::max), old_log_prob);
  const V mass = clamp(V(h.sigma_base) * exp_of(V(-h.alpha) * finite_old), V(h.sigma_base), V(h.sigma_high));
  const V risk = select(advantage > zero, one + V(h.beta_pos) * advantage, one / (one - V(h.beta_neg) * advantage));
  token.sigma = mass * clamp(risk, V(h.adv_low), V(h.adv_high));

  token.gated_pos = (advantage > zero) & (r.ratio > one);
  token.gated_neg = (advantage < zero) & (r.ratio < one);
  const auto gated = token.gated_pos | token.gated_neg;
  const V z = (r.ratio - one) / token.sigma;
  token.gate = select(gated, exp_of(V(S(-0.5)) * z * z), one);

  token.loss = -advantage * token.gate * r.ratio;
  token.dloss = select(r.inside, token.loss, zero);
  if (h.gate_gradient) {
    // d gate / d log_prob = -gate * rho (rho - 1) / sigma^2; where the gate has underflowed its slope is 0, not 0 * inf.
    const V slope = select(gated & (token.gate > zero), one - r.ratio * z / token.sigma, one);
    token.dloss = token.dloss * slope;
  }
  // NaN in log_prob or old_log_prob makes `inside` false: let it reach the gradient instead of hiding it.
  token.dloss = select(r.ratio != r.ratio, token.loss, token.dloss);
  return token;
}

}  // namespace maspo
