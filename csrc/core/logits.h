// From a row of logits to the log-probability of one word and the entropy, and back. Logits are divided by the temperature
// after the maximum was taken off: that difference is exact for the words that matter, and a rounding of large logits is not.
#pragma once

#include "core/batch.h"

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

// The rows of logits, or the part of their words that a shard of the vocabulary has.
struct LogitRows {
  const void* data;
  DType dtype;
  int64_t outer, inner;                // rows: [outer, inner]
  int64_t outer_stride, inner_stride;  // in elements; a row's words are contiguous
  int64_t words;
};

MASPO_HD int64_t row_count(const LogitRows& r) { return r.outer * r.inner; }
MASPO_HD int64_t row_offset(const LogitRows& r, int64_t row) {
  return row / r.inner * r.outer_stride + row % r.inner * r.inner_stride;
}

// Which word of a row the target is.
struct Targets {
  const int64_t* index;  // [rows], of the whole vocabulary
  int64_t ignore_index;  // rows with this target are left out: results and gradients are 0
  int64_t first_word;    // the rows hold the words [first_word, first_word + words) of a vocabulary of all_words
  int64_t all_words;
};

enum TargetKind : int32_t { kTargetHere, kTargetElsewhere, kTargetIgnored, kTargetInvalid };

MASPO_HD TargetKind target_kind(const Targets& t, int64_t words, int64_t index) {
  if (index == t.ignore_index) return kTargetIgnored;
  if (index < 0 || index >= t.all_words) return kTargetInvalid;
  return index >= t.first_word && index - t.first_word < words ? kTargetHere : kTargetElsewhere;
}

struct LogprobParams {
  LogitRows logits;
  Targets target;
  double inv_temperature;
  // Outputs, one per row; S is the arithmetic type, double for float64 logits and float for all others.
  void* log_prob;   // S; 0 where the target is in another shard, NaN where it is in none
  void* entropy;    // S
  RowState* state;
};

struct LogprobGradParams {
  LogitRows logits;
  Targets target;
  double inv_temperature;
  const void* entropy;  // S, and the next two, one per row
  const void* dlog_prob;
  const void* dentropy;  // null: 0
  const RowState* state;
  void* grad;  // the logits' shape; may be their memory where the dtype is theirs, too
  DType grad_dtype;
  int64_t grad_outer_stride, grad_inner_stride;
};

MASPO_HD int64_t grad_offset(const LogprobGradParams& p, int64_t row) {
  return row / p.logits.inner * p.grad_outer_stride + row % p.logits.inner * p.grad_inner_stride;
}

// Of a row whose target is not ignored. An invalid target spoils the gradient, unless nothing asks for its log_prob.
template <class S>
MASPO_HD RowGradient<S> row_gradient(const LogprobGradParams& p, int64_t row, TargetKind kind) {
  const S dlog_prob = static_cast<const S*>(p.dlog_prob)[row];
  const S poison = static_cast<S>(kind == kTargetInvalid && dlog_prob != S(0) ? not_a_number() : 0.0);
  return {static_cast<S>(p.inv_temperature),
          static_cast<S>(p.state[row].max),
          static_cast<S>(p.state[row].log_sum),
          static_cast<const S*>(p.entropy)[row],
          dlog_prob + poison,
          p.dentropy == nullptr ? S(0) : static_cast<const S*>(p.dentropy)[row]};
}

}  // namespace maspo
