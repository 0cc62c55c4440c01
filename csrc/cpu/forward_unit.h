// The forward pass over one unit of the batch, for one instruction set and method. The including file sets the target and
// defines the functions of its vectors first.
#pragma once

#include "cpu/stage.h"

namespace maspo {
namespace {

template <class V, int kMethodSums>
inline StatSums<double> sums_over_lanes(const StatSums<V, kMethodSums>& s) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  StatSums<double> total = no_sums<double>();
  for (int k = 0; k < kNumSums; ++k) total.sum[k] = sum_over_lanes(s.sum[k]);
  for (int k = 0; k < kMethodSums; ++k) total.method[k] = sum_over_lanes(s.method[k]);
  S lane[lanes];
  Lanes<V>::store(lane, s.ratio_min);
  for (int i = 0; i < lanes; ++i) total.ratio_min = lane[i] < total.ratio_min ? lane[i] : total.ratio_min;
  Lanes<V>::store(lane, s.ratio_max);
  for (int i = 0; i < lanes; ++i) total.ratio_max = lane[i] > total.ratio_max ? lane[i] : total.ratio_max;
  return total;
}

template <class V, template <class> class Hyper>
void forward_unit(const LossParams& p, int64_t unit) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  const Hyper<S> h = hyper_of<Hyper, S>(p);
  const Options<S> o = options_as<S>(p.options);
  const bool weighted = p.rollout_is_weights.data != nullptr;
  Run<S> in = {};
  StatSums<double> sums = no_sums<double>();
  RowSums row_sums;

  const auto run = [&](const Span& span, int64_t col, int count) {
    S* dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + span.start + col;
    if (!in.stage_mask(p.response_mask, p.batch, span, col, count)) {
      if (dlogp != nullptr) __builtin_memset(dlogp, 0, count * sizeof(S));
      return;
    }
    in.log_prob.stage(p.log_prob, p.batch, span, col, count);
    in.old_log_prob.stage(p.old_log_prob, p.batch, span, col, count);
    in.advantage.stage(p.advantages, p.batch, span, col, count);
    in.is_weight.stage(p.rollout_is_weights, p.batch, span, col, count);
    in.entropy.stage(p.entropy, p.batch, span, col, count);
    in.ref_log_prob.stage(p.ref_log_prob, p.batch, span, col, count);

    const auto load = [](const Staged<S>& s, int i) { return Lanes<V>::load(s.values + i); };
    StatSums<V, Hyper<S>::kSums> run_sums = no_sums<V, Hyper<S>::kSums>();
    V loss = V(S(0));
    const int padded = padded_to_lanes<V>(count);
    for (int i = 0; i < padded; i += lanes) {
      const TokenInputs<V> token = {load(in.mask, i),
                                    load(in.log_prob, i),
                                    load(in.old_log_prob, i),
                                    load(in.advantage, i),
                                    weighted ? load(in.is_weight, i) : V(S(1)),
                                    load(in.entropy, i),
                                    load(in.ref_log_prob, i)};
      const TokenOutputs<V> out = visit_token(token, h, o, run_sums);
      loss += out.loss;
      if (dlogp == nullptr) continue;
      if (i + lanes <= count) {
        Lanes<V>::store(dlogp + i, out.dlogp);
      } else {
        S tail[lanes];
        Lanes<V>::store(tail, out.dlogp);
        __builtin_memcpy(dlogp + i, tail, (count - i) * sizeof(S));
      }
    }
    const StatSums<double> run_total = sums_over_lanes(run_sums);
    add_sums(sums, run_total);
    row_sums.tokens += run_total.sum[kTokens];
    row_sums.loss += sum_over_lanes(loss);
  };
  for_each_run(
      p.batch, p.tiling, unit, [&](const Span&) { row_sums = {0.0, 0.0}; }, run,
      [&](int64_t piece) { p.pieces[piece] = row_sums; });
  p.units[unit] = sums;
}

}  // namespace
}  // namespace maspo
