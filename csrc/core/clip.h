// The hard clip of PPO (arXiv 1707.06347) and of its variants, which differ in their bounds only.
//
//   loss = -A min(rho, high)  for A > 0
//          -A max(rho, low)   for A < 0
//
// The gradient is full at a bound and 0 beyond it. The dual clip, rho <= c for A < 0, is in dual_clip.h. GRPO and Clip
// Higher (DAPO) have constant bounds; BAPO's are searched (bapo.h); DAC's depend on the token (dac.h).
// Reference: compute_policy_loss_vanilla of verl 0.9.1.
#pragma once

#include "core/method.h"

namespace maspo {

template <class V>
MASPO_HD flag_t<V> beyond_clip(V ratio, V advantage, V low, V high) {
  const V zero = V(scalar_t<V>(0));
  return ((advantage > zero) & (ratio > high)) | ((advantage < zero) & (ratio < low));
}

template <class V>
MASPO_HD MethodToken<V> clip_token(const Ratio<V>& r, V advantage, V low, V high) {
  const V zero = V(scalar_t<V>(0));
  MethodToken<V> token;
  token.clipped = beyond_clip(r.ratio, advantage, low, high);
  const V bound = select(advantage > zero, high, low);
  token.loss = -advantage * select(token.clipped, bound, r.ratio);
  token.dloss = select(r.inside & !token.clipped, token.loss, zero);
  return token;
}

template <class S>
struct ClipHyper {
  static constexpr bool kClampLow = true, kMayClipTwice = true;
  static constexpr int kMeans = 0, kCounts = 0;
  S low, high;  // bounds of the ratio: 1 - clip_ratio_low, 1 + clip_ratio_high

  MASPO_HD ClipHyper from(const double* v) { return {static_cast<S>(v[0]), static_cast<S>(v[1])}; }
  MASPO_HD void finish(const double*, double, double*) {}
};

template <class V>
MASPO_HD MethodToken<V> method_token(const Ratio<V>& r, V, V advantage, const ClipHyper<scalar_t<V>>& h) {
  return clip_token(r, advantage, V(h.low), V(h.high));
}

}  // namespace maspo
