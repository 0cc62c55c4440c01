// Rows of logits as they lie in memory, their targets, and what a pass over them is given and leaves.
#pragma once

#include "core/batch.h"
#include "core/logits.h"

namespace maspo {

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
  DType grad_dtype;
};

// Where the gradient of the words [first, first + words) of the rows goes.
struct GradBlock {
  void* data;  // may be the memory of these logits where the dtype is theirs, too
  int64_t first, words;
  int64_t outer_stride, inner_stride;  // as of LogitRows
};

MASPO_HD int64_t grad_offset(const LogitRows& r, const GradBlock& b, int64_t row) {
  return row / r.inner * b.outer_stride + row % r.inner * b.inner_stride;
}

// What a row leaves forward: of an ignored one zeros, else what its sums make; `target_logit` is read where the target is here.
template <class S>
MASPO_HD void write_ignored_row(const LogprobParams& p, int64_t row) {
  static_cast<S*>(p.log_prob)[row] = static_cast<S*>(p.entropy)[row] = S(0);
  p.state[row] = {0.0, 0.0};
}
template <class S>
MASPO_HD void write_row(const LogprobParams& p, int64_t row, TargetKind kind, const LogitSums<double>& sums, double target_logit) {
  const LogitRow result = row_of(sums);
  const double log_prob = kind == kTargetHere        ? log_prob_of(target_logit, result.state, p.inv_temperature)
                          : kind == kTargetElsewhere ? 0.0
                                                     : not_a_number();
  static_cast<S*>(p.log_prob)[row] = static_cast<S>(log_prob);
  static_cast<S*>(p.entropy)[row] = static_cast<S>(result.entropy);
  p.state[row] = result.state;
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
