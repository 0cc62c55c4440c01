// One row of logits, forward and backward, for one instruction set. The including file sets the target and defines the
// functions of its vectors first.
#pragma once

#include "core/logit_rows.h"
#include "cpu/stage.h"

namespace maspo {
namespace {

// Words worked on at a time: they are read twice forward, for the maximum and for the sums, the second time from the L1
// cache; and a float sum over them loses no digits that matter before it is added to a double. kSums sums side by side: an
// addition need not wait for the one before, and a confident word's 1 swallows the digits of few others: with one
// lane to a vector the sums end sooner.
constexpr int kWords = 2048, kSums = 4;
constexpr int additions_of(int lanes) { return lanes == 1 ? 16 : kWords / kSums / lanes; }

// `count` of a row's words as values of the arithmetic type, padded to whole vectors by banned words.
template <class V>
struct alignas(64) Words {
  using S = scalar_t<V>;
  S buffer[kWords];
  const S* values;
  int padded;

  void stage(const LogitRows& rows, int64_t offset, int count) {
    padded = padded_to_lanes<V>(count);
    if (rows.dtype == kOwnDType<S> && padded == count) {
      values = static_cast<const S*>(rows.data) + offset;
      return;
    }
    load_tokens(View{rows.data, 0, 1, rows.dtype}, offset, count, buffer);
    for (int i = count; i < padded; ++i) buffer[i] = -static_cast<S>(Limits<double>::infinity());
    values = buffer;
  }

  V at(int i) const { return Lanes<V>::load(values + i); }
};

template <class V>
inline scalar_t<V> max_over(const Words<V>& words) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  V max = no_logits<V>().max;
  for (int i = 0; i < words.padded; i += lanes) max = at_least(max, words.at(i));
  S lane[lanes];
  Lanes<V>::store(lane, max);
  S of_lanes = lane[0];
  for (int i = 1; i < lanes; ++i) of_lanes = at_least(of_lanes, lane[i]);
  return of_lanes;
}

template <class S>
inline double logit_at(const LogitRows& rows, int64_t offset) {
  S value = S(0);
  load_tokens(View{rows.data, 0, 1, rows.dtype}, offset, 1, &value);
  return value;
}

template <class V>
void logprob_row(const LogprobParams& p, int64_t row) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  const int64_t index = p.target.index[row];
  const TargetKind kind = target_kind(p.target, p.logits.words, index);
  if (kind == kTargetIgnored) return write_ignored_row<S>(p, row);
  const V inv_temperature = V(static_cast<S>(p.inv_temperature));
  const int64_t start = row_offset(p.logits, row);
  LogitSums<double> sums = no_logits<double>();
  Words<V> words;
  for (int64_t first = 0; first < p.logits.words; first += kWords) {
    const int64_t left = p.logits.words - first;
    words.stage(p.logits, start + first, static_cast<int>(left < kWords ? left : kWords));
    const S max = max_over(words);
    LogitSums<double> of_words = {max, 0.0, 0.0};
    for (int i = 0; i < words.padded;) {
      LogitSums<V> block[kSums];
      for (auto& one : block) one = {V(max), V(S(0)), V(S(0))};
      constexpr int most = additions_of(lanes) * kSums * lanes;
      const int end = i + most < words.padded ? i + most : words.padded;
      for (; i + kSums * lanes <= end; i += kSums * lanes) {
        for (int k = 0; k < kSums; ++k) add_logit(block[k], words.at(i + k * lanes), inv_temperature);
      }
      for (; i < end; i += lanes) add_logit(block[0], words.at(i), inv_temperature);
      double sum = 0.0, weighted = 0.0;
      for (const auto& one : block) {
        sum += sum_over_lanes(one.sum);
        weighted += sum_over_lanes(one.weighted);
      }
      of_words.sum += sum;
      of_words.weighted += weighted;
    }
    add_logits(sums, of_words, p.inv_temperature);
  }
  const double logit = kind == kTargetHere ? logit_at<S>(p.logits, start + index - p.target.first_word) : 0.0;
  write_row<S>(p, row, kind, sums, logit);
}

// The gradient may be the logits' own memory: a word is read before it is written, and never again.
template <class V>
void logprob_grad_row(const LogprobGradParams& p, const GradBlock& block, int64_t row) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  constexpr int64_t nowhere = -1;
  const int64_t index = p.target.index[row];
  const TargetKind kind = target_kind(p.target, p.logits.words, index);
  const int64_t start = row_offset(p.logits, row) + block.first, grad_start = grad_offset(p.logits, block, row);
  const RowGradient<S> g = row_gradient<S>(p, row, kind);
  const int64_t target = kind == kTargetHere ? index - p.target.first_word - block.first : nowhere;
  Words<V> words;
  alignas(64) S out[kWords];
  for (int64_t first = 0; first < block.words; first += kWords) {
    const int64_t left = block.words - first;
    const int count = static_cast<int>(left < kWords ? left : kWords);
    if (kind == kTargetIgnored) {
      for (int i = 0; i < count; ++i) out[i] = S(0);
    } else {
      words.stage(p.logits, start + first, count);
      for (int i = 0; i < words.padded; i += lanes) {
        Lanes<V>::store(out + i, dlogit_of(words.at(i), g));
      }
      if (target >= first && target < first + count) out[target - first] += dtarget_of(g);
    }
    store_tokens(block.data, p.grad_dtype, grad_start + first, count, out);
  }
}

}  // namespace
}  // namespace maspo
