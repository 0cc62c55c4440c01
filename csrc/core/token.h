// One token's way: select masked inputs away, entropy bonus, ratio, dual clip, method, KL, weights, sums. Called by every
// engine.
#pragma once

#include "core/dual_clip.h"
#include "core/entropy_adv.h"
#include "core/is_weight.h"
#include "core/kl.h"
#include "core/stats.h"

namespace maspo {

// What every method can be combined with.
template <class S>
struct Options {
  S clip_ratio_c;   // pg_clipfrac_lower counts A < 0 with a ratio beyond it
  bool dual_clip;   // and this stops the gradient there
  bool has_entropy;
  S entropy_alpha, entropy_kappa;
  bool has_ref;
  int32_t kl_type;
  bool kl_straight_through;
  S kl_coef;
  int32_t is_rule;
  S is_lower, is_upper;
};

template <class V>
struct TokenInputs {
  V mask, log_prob, old_log_prob, advantage, is_weight;
  V entropy, ref_log_prob;  // read where Options has them
};

template <class V>
struct TokenOutputs {
  V loss;   // mask * (is_weight * loss + kl_coef * kl)
  V dlogp;  // its derivative in log_prob
};

// 0 where the value is finite, else NaN: of a sum of these, one comparison tells.
template <class V>
MASPO_HD V finite_probe(V value) {
  return V(scalar_t<V>(0)) * value;
}

// kFinite: all inputs are known to be.
template <bool kFinite = false, class V, class Hyper>
MASPO_HD TokenOutputs<V> visit_token(TokenInputs<V> in, const Hyper& h, const Options<scalar_t<V>>& o,
                                     StatSums<total_t<V>, kSumsOf<Hyper>>& s) {
  using S = scalar_t<V>;
  const V zero = V(S(0)), one = V(S(1));
  const auto valid = in.mask != zero;
  // Selected before any arithmetic: 0 * NaN would let a masked token through.
  in.log_prob = select(valid, in.log_prob, zero);
  in.old_log_prob = select(valid, in.old_log_prob, zero);
  in.advantage = select(valid, in.advantage, zero);
  in.is_weight = select(valid, in.is_weight, one);
  V probe = finite_probe(in.log_prob) + finite_probe(in.old_log_prob) + finite_probe(in.advantage) +
            finite_probe(in.is_weight);
  if (o.has_entropy) {
    in.entropy = select(valid, in.entropy, zero);
    probe += finite_probe(in.entropy);
    const V bonus = entropy_bonus(in.advantage, in.entropy, V(o.entropy_alpha), V(o.entropy_kappa));
    in.advantage = in.advantage + bonus;
    add_to(s.sum[kEntropyBonus], in.mask * bonus);
  }
  if (o.has_ref) {
    in.ref_log_prob = select(valid, in.ref_log_prob, zero);
    probe += finite_probe(in.ref_log_prob);
  }
  // Every sum is added to as soon as what it counts is known: nothing waits for that in a register.
  if (!kFinite) add_where(s.sum[kNonfinite], probe != probe, one);
  add_to(s.sum[kTokens], in.mask);

  const Ratio<V> r = ratio_of<Hyper::kClampLow>(in.log_prob, in.old_log_prob);
  add_to(s.sum[kLogRatio], in.mask * r.log_ratio);
  add_where(s.sum[kClamped], !r.inside, in.mask);
  add_to(s.sum[kRatio], in.mask * r.ratio);
  lower_to(s.ratio_min, select(valid, r.ratio, V(Limits<S>::max)));
  raise_to(s.ratio_max, select(valid, r.ratio, zero));
  const auto beyond_c = (in.advantage < zero) & (r.ratio > V(o.clip_ratio_c));
  add_where(s.sum[kClipLower], beyond_c, in.mask);

  MethodToken<V> token = method_token(o.dual_clip ? dual_clip(r, beyond_c, V(o.clip_ratio_c)) : r, in.old_log_prob,
                                      in.advantage, h);
  add_where(s.sum[kClip], token.clipped, in.mask);
  for (int i = 0; i < Hyper::kMeans; ++i) add_to(s.method[i], in.mask * token.means[i]);
  for (int i = 0; i < Hyper::kCounts; ++i) add_where(s.method[Hyper::kMeans + i], token.counts[i], in.mask);
  // A NaN makes `inside` false and is in no branch of a clip: let it reach the gradient instead of hiding it.
  if (!kFinite) token.dloss = select(token.loss != token.loss, token.loss, token.dloss);

  if (o.is_rule != kIsAsGiven) {
    const IsWeight<V> bounded = bounded_is_weight(in.is_weight, V(o.is_lower), V(o.is_upper), o.is_rule);
    in.is_weight = bounded.value;
    add_where(s.sum[kIsOutside], bounded.outside, in.mask);
  }
  V loss = in.is_weight * token.loss, dloss = in.is_weight * token.dloss;

  if (o.has_ref) {
    const Kl<V> kl = kl_of(in.log_prob, in.ref_log_prob, o.kl_type, o.kl_straight_through);
    loss += V(o.kl_coef) * kl.value;
    dloss += V(o.kl_coef) * select(kl.value != kl.value, kl.value, kl.slope);
    add_to(s.sum[kRefKl], in.mask * kl.value);
  }
  TokenOutputs<V> out;
  out.loss = select(valid, in.mask * loss, zero);
  out.dlogp = select(valid, in.mask * dloss, zero);
  return out;
}

}  // namespace maspo
