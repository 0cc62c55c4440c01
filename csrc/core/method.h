// What every method gives for a token. A method is a header with
//   * XHyper<S>: its hyper-parameters; XHyper<S>::from(values) reads them in the order of its config class
//     (maspo_ext/methods/); kClampLow, see ratio.h; kMayClipTwice, whether the dual clip
//     usually goes with it; kMeans and kCounts, how many sums of its own it keeps;
//     finish(sums, tokens, stats), the statistics made of these sums;
//   * method_token(ratio, old_log_prob, advantage, hyper): the formula. Its gradient is 0 where ratio.inside is false: beyond
//     the clamp, and beyond the dual clip.
#pragma once

#include "core/ratio.h"

namespace maspo {

constexpr int kMaxHyper = 12;
constexpr int kMaxMethodSums = 5;
constexpr int kMethodStats = 5;

template <class V>
struct MethodToken {
  V loss;             // L, before the mask and the weights
  V dloss;            // d L / d log_prob
  flag_t<V> clipped;  // counts in pg_clipfrac
  V means[kMaxMethodSums];             // the first kMeans are summed over the tokens, weighted by the mask
  flag_t<V> counts[kMaxMethodSums];  // and so are the first kCounts of these, as 1 where they hold
};

template <class Hyper>
constexpr int kSumsOf = Hyper::kMeans + Hyper::kCounts;

// What a loop for most batches leaves out: nothing, but where a method has an overload.
template <class Hyper>
MASPO_HD bool has_options(const Hyper&) {
  return false;
}
template <class Hyper>
MASPO_HD Hyper without_options(Hyper h) {
  return h;
}

template <class V>
MASPO_HD flag_t<V> never() {
  return V(scalar_t<V>(0)) < V(scalar_t<V>(0));
}

MASPO_HD double mean_or(double sum, double count, double otherwise) { return count == 0 ? otherwise : sum / count; }

}  // namespace maspo
