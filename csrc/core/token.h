// One token's way: select masked inputs away, ratio, method, weights, sums. Called by every engine.
#pragma once

#include "core/stats.h"

namespace maspo {

template <class S>
struct LossHyper {
  MaspoHyper<S> method;
  // MASPO applies no clip; these bounds only feed the clip statistics, as verl names them.
  S clip_low, clip_high, clip_c;  // 1 - clip_ratio_low, 1 + clip_ratio_high, clip_ratio_c
};

template <class V>
struct TokenInputs {
  V mask, log_prob, old_log_prob, advantage, is_weight;
};

template <class V>
struct TokenOutputs {
  V loss;   // mask * is_weight * loss
  V dlogp;  // mask * is_weight * d loss / d log_prob
};

template <class V>
MASPO_HD auto is_nonfinite(V value) -> decltype(value < value) {
  const V bound = V(Limits<scalar_t<V>>::max);
  return !((value <= bound) & (value >= -bound));
}

template <class V>
MASPO_HD TokenOutputs<V> visit_token(TokenInputs<V> in, const LossHyper<scalar_t<V>>& h, StatSums<V>& s) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1));
  const auto valid = in.mask != zero;
  // Selected before any arithmetic: 0 * NaN would let a masked token through.
  in.log_prob = select(valid, in.log_prob, zero);
  in.old_log_prob = select(valid, in.old_log_prob, zero);
  in.advantage = select(valid, in.advantage, zero);
  in.is_weight = select(valid, in.is_weight, one);

  const Ratio<V> r = ratio_of(in.log_prob, in.old_log_prob);
  const MaspoToken<V> token = maspo_token(r, in.old_log_prob, in.advantage, h.method);

  const V low = V(h.clip_low), high = V(h.clip_high), c = V(h.clip_c);
  const auto pos = in.advantage > zero, neg = in.advantage < zero;
  const auto clipped = (pos & (r.ratio > high)) | (neg & (r.ratio < low));
  const auto clipped_lower = neg & ((r.ratio > c) | (low > c));
  const auto nonfinite = is_nonfinite(in.log_prob) | is_nonfinite(in.old_log_prob) | is_nonfinite(in.advantage) |
                         is_nonfinite(in.is_weight);

  s.sum[kTokens] += in.mask;
  s.sum[kLogRatio] += in.mask * r.log_ratio;
  s.sum[kRatio] += in.mask * r.ratio;
  s.sum[kSigma] += in.mask * token.sigma;
  s.sum[kClip] += select(clipped, in.mask, zero);
  s.sum[kClipLower] += select(clipped_lower, in.mask, zero);
  s.sum[kGatedPos] += select(token.gated_pos, in.mask, zero);
  s.sum[kGatedNeg] += select(token.gated_neg, in.mask, zero);
  s.sum[kGatePos] += select(token.gated_pos, in.mask * token.gate, zero);
  s.sum[kGateNeg] += select(token.gated_neg, in.mask * token.gate, zero);
  s.sum[kClamped] += select(r.inside, zero, in.mask);
  s.sum[kNonfinite] += select(valid & nonfinite, one, zero);
  s.ratio_min = select(valid & (r.ratio < s.ratio_min), r.ratio, s.ratio_min);
  s.ratio_max = select(valid & (r.ratio > s.ratio_max), r.ratio, s.ratio_max);

  const V weight = in.mask * in.is_weight;
  TokenOutputs<V> out;
  out.loss = select(valid, weight * token.loss, zero);
  out.dlogp = select(valid, weight * token.dloss, zero);
  return out;
}

}  // namespace maspo
