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

#include "core/clip.h"

namespace maspo {

template <class S>
struct MaspoHyper {
  static constexpr bool kClampLow = true, kMayClipTwice = false;
  static constexpr int kMeans = 3, kCounts = 2;
  S sigma_base, alpha, sigma_high, adv_low, adv_high, beta_pos, beta_neg;
  bool gate_gradient;  // differentiate through the gate; the reference treats it as a constant
  S clip_low, clip_high;  // of the clip that pg_clipfrac counts, as in the reference; MASPO does not apply it

  MASPO_HD MaspoHyper from(const double* v) {
    return {static_cast<S>(v[0]), static_cast<S>(v[1]), static_cast<S>(v[2]), static_cast<S>(v[3]),
            static_cast<S>(v[4]), static_cast<S>(v[5]), static_cast<S>(v[6]), v[7] != 0.0,
            static_cast<S>(v[8]), static_cast<S>(v[9])};
  }
  MASPO_HD void finish(const double* sums, double tokens, double* stats) {
    const double open_gate = tokens == 0 ? 0.0 : 1.0;
    stats[0] = mean_or(sums[1], sums[3], open_gate);
    stats[1] = mean_or(sums[2], sums[4], open_gate);
    stats[2] = mean_or(sums[3], tokens, 0.0);
    stats[3] = mean_or(sums[4], tokens, 0.0);
    stats[4] = mean_or(sums[0], tokens, 0.0);
  }
};

// What a loop for most batches leaves out.
template <class S>
MASPO_HD bool has_options(const MaspoHyper<S>& h) {
  return h.gate_gradient;
}
template <class S>
MASPO_HD MaspoHyper<S> without_options(MaspoHyper<S> h) {
  h.gate_gradient = false;
  return h;
}

template <class V>
MASPO_HD MethodToken<V> method_token(const Ratio<V>& r, V old_log_prob, V advantage,
                                     const MaspoHyper<scalar_t<V>>& h) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1));
  const auto pos = advantage > zero, neg = advantage < zero;

  // 1 / pi_old^alpha as exp(-alpha log pi_old), stopped at e^80: there sigma_high has long been reached. The lower bound
  // keeps alpha = 0 with old_log_prob = -inf from being 0 * inf.
  const V finite_old = at_least(old_log_prob, V(-Limits<S>::max));
  const V over_pi = weight_exp(at_most(V(-h.alpha) * finite_old, V(S(80))));
  const V mass = clamp(V(h.sigma_base) * over_pi, V(h.sigma_base), V(h.sigma_high));
  const V risk = select(pos, one + V(h.beta_pos) * advantage, quotient(one, one - V(h.beta_neg) * advantage));
  const V sigma = mass * clamp(risk, V(h.adv_low), V(h.adv_high));

  const auto gated_pos = pos & (r.ratio > one), gated_neg = neg & (r.ratio < one);
  const auto gated = gated_pos | gated_neg;
  const V z = quotient(r.ratio - one, sigma);
  const V gate = select(gated, weight_exp(V(S(-0.5)) * z * z), one);

  MethodToken<V> token;
  token.loss = -advantage * gate * r.ratio;
  token.dloss = select(r.inside, token.loss, zero);
  if (h.gate_gradient) {
    // d gate / d log_prob = -gate * rho (rho - 1) / sigma^2; where the gate has underflowed its slope is 0, not 0 * inf.
    token.dloss = token.dloss * select(gated & (gate > zero), one - quotient(r.ratio * z, sigma), one);
  }
  token.clipped = beyond_clip(r.ratio, advantage, V(h.clip_low), V(h.clip_high));
  token.means[0] = sigma;
  token.means[1] = select(gated_pos, gate, zero);
  token.means[2] = select(gated_neg, gate, zero);
  token.counts[0] = gated_pos;
  token.counts[1] = gated_neg;
  return token;
}

}  // namespace maspo
