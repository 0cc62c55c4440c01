// From a row of logits to the log-probability of one word and the entropy, and back. Logits are divided by the temperature
// after the maximum was taken off: that difference is exact for the words that matter, and a rounding of large logits is not.
#pragma once

#include "core/portable.h"

namespace maspo {

MASPO_HD double log_of(double v) { return ::log(v); }

// exp gives 0 from here down, in float32 and in float64. A banned word's -inf stops here: 0 * -inf would be a NaN.
constexpr double kLowestExponent = -1000.0;

template <class V>
MASPO_HD V exponent_of(V logit, V max, V inv_temperature) {
  return at_least((logit - max) * inv_temperature, V(static_cast<scalar_t<V>>(kLowestExponent)));
}

// Over the words seen so far; e_j the exponent of word j. The maximum starts at the lowest finite number, not at -inf:
// -inf - -inf would be a NaN.
template <class V>
struct LogitSums {
  V max;       // of the logits
  V sum;       // of exp(e_j)
  V weighted;  // of e_j exp(e_j)
};

template <class V>
MASPO_HD LogitSums<V> no_logits() {
  using S = scalar_t<V>;
  return {V(-Limits<S>::max), V(S(0)), V(S(0))};
}

// To a maximum that is no lower.
template <class V>
MASPO_HD void raise_max(LogitSums<V>& s, V max, V inv_temperature) {
  const V step = exponent_of(s.max, max, inv_temperature), factor = exp_of(step);
  s.weighted = factor * (s.weighted + step * s.sum);
  s.sum = factor * s.sum;
  s.max = max;
}

// A word whose logit is at most the maximum. A NaN, which the maximum may not have seen, gets into the sums.
template <class V>
MASPO_HD void add_logit(LogitSums<V>& s, V logit, V inv_temperature) {
  const V exponent = exponent_of(logit, s.max, inv_temperature), term = exp_of(exponent);
  s.sum += term;
  s.weighted += exponent * term;
}

template <class V>
MASPO_HD void add_logits(LogitSums<V>& s, LogitSums<V> other, V inv_temperature) {
  const V max = at_least(s.max, other.max);
  raise_max(s, max, inv_temperature);
  raise_max(other, max, inv_temperature);
  s.sum += other.sum;
  s.weighted += other.weighted;
}

// What backward needs of a row.
struct RowState {
  double max, log_sum;  // of the logits; the logarithm of LogitSums' sum
};

struct LogitRow {
  RowState state;
  double entropy;  // -sum_j p_j log p_j, nats
};

MASPO_HD LogitRow row_of(const LogitSums<double>& s) {
  const double log_sum = log_of(s.sum);
  return {{s.max, log_sum}, at_least(log_sum - s.weighted / s.sum, 0.0)};  // rounding may have passed 0
}

MASPO_HD double log_prob_of(double logit, const RowState& row, double inv_temperature) {
  return at_most((logit - row.max) * inv_temperature - row.log_sum, 0.0);
}

// A row's constants of backward, rounded to the arithmetic type.
template <class S>
struct RowGradient {
  S inv_temperature, max, log_sum, entropy;
  S dlog_prob, dentropy;  // derivatives of the loss in the row's two results
};

// d loss / d logit_j short of the target's own part: with log p_j = e_j - log_sum and T the temperature,
// T d log p_t / d logit_j = [j = t] - p_j and T d entropy / d logit_j = -p_j (log p_j + entropy).
template <class V>
MASPO_HD V dlogit_of(V logit, const RowGradient<scalar_t<V>>& g) {
  const V log_p = exponent_of(logit, V(g.max), V(g.inv_temperature)) - V(g.log_sum);
  return -(exp_of(log_p) * (V(g.dlog_prob) + V(g.dentropy) * (log_p + V(g.entropy)))) * V(g.inv_temperature);
}
// What the target's word gets on top.
template <class S>
MASPO_HD S dtarget_of(const RowGradient<S>& g) {
  return g.dlog_prob * g.inv_temperature;
}

}  // namespace maspo
