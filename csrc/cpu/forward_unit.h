// The forward pass over one unit of the batch, for one instruction set and method. The including file sets the target and
// defines the functions of its vectors first.
#pragma once

#include <type_traits>

#include "cpu/pair.h"
#include "cpu/stage.h"

namespace maspo {
namespace {

// Sums over a unit: floats over a run, doubles over the runs.
template <class V, int kMethodSums>
struct UnitSums {
  using Total = total_t<V>;
  using Wide = widened_t<Total>;
  StatSums<Wide, kMethodSums> of_runs;
  StatSums<Total, kMethodSums> run;

  // The least and the largest ratio lose nothing as floats, and stay where they are.
  void end_run() {
    for (int i = 0; i < kNumSums; ++i) end_run(of_runs.sum[i], run.sum[i]);
    for (int i = 0; i < kMethodSums; ++i) end_run(of_runs.method[i], run.method[i]);
  }

  static void end_run(Wide& of_runs, Total& of_run) {
    of_runs += widened(of_run);
    of_run = Total(scalar_t<V>(0));
  }

  StatSums<double> over_lanes() const {
    using S = scalar_t<V>;
    constexpr int lanes = Lanes<Total>::count;
    StatSums<double> total = no_sums<double>();
    for (int i = 0; i < kNumSums; ++i) total.sum[i] = sum_over_lanes(of_runs.sum[i]);
    for (int i = 0; i < kMethodSums; ++i) total.method[i] = sum_over_lanes(of_runs.method[i]);
    S lane[lanes];
    Lanes<Total>::store(lane, run.ratio_min);
    for (int i = 0; i < lanes; ++i) lower_to(total.ratio_min, static_cast<double>(lane[i]));
    Lanes<Total>::store(lane, run.ratio_max);
    for (int i = 0; i < lanes; ++i) raise_to(total.ratio_max, static_cast<double>(lane[i]));
    return total;
  }
};

// kOptions: whether a token has more to do than its method. Without, it has no branch for that.
template <class V, template <class> class Hyper, bool kOptions>
void forward_unit_with(const LossParams& p, int64_t unit) {
  using S = scalar_t<V>;
  constexpr int lanes = Lanes<V>::count;
  const Hyper<S> h = hyper_of<Hyper<S>>(p);
  Options<S> o = options_as<S>(p.options);
  if (!kOptions) {
    o.has_entropy = o.has_ref = false;
    o.is_rule = kIsAsGiven;
  }
  const bool weighted = kOptions && p.rollout_is_weights.data != nullptr;
  Run<V> in = {};
  constexpr int kSums = kSumsOf<Hyper<S>>;
  UnitSums<V, kSums> sums = {no_sums<widened_t<total_t<V>>, kSums>(), no_sums<total_t<V>, kSums>()};
  using Total = total_t<V>;
  widened_t<Total> row_loss;

  const auto run = [&](const Span& span, int64_t col, int count) {
    S* dlogp = p.dlogp == nullptr ? nullptr : static_cast<S*>(p.dlogp) + span.start + col;
    const RunMask mask = mask_of_run(p.response_mask, p.batch, span, col, count);
    if (mask == kNothingCounts) {
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
    Total loss = Total(S(0));
    const V row_scale = V(static_cast<S>(p.row_scale[span.row]));
    const int padded = padded_to_lanes<V>(count);
    const S advantage = in.advantage.values[0];
    // kUniform: every token of the run counts once, and all have one advantage, as in most runs where a sequence has one reward.
    // Written as constants, the compiler takes what follows from them out of the loop, and the bits stay. Inline: a call would
    // bring the sums through memory at every token.
    const auto visit = [&](auto kUniform) __attribute__((always_inline)) {
      for (int i = 0; i < padded; i += lanes) {
        const TokenInputs<V> token = {kUniform ? V(S(1)) : load(in.mask, i),
                                      load(in.log_prob, i),
                                      load(in.old_log_prob, i),
                                      kUniform ? V(advantage) : load(in.advantage, i),
                                      weighted ? load(in.is_weight, i) : V(S(1)),
                                      load(in.entropy, i),
                                      load(in.ref_log_prob, i)};
        const TokenOutputs<V> out = visit_token(token, h, o, sums.run);
        add_to(loss, out.loss);
        if (dlogp == nullptr) continue;
        const V scaled = out.dlogp * row_scale;
        if (i + lanes <= count) {
          Lanes<V>::store(dlogp + i, scaled);
        } else {
          S tail[lanes];
          Lanes<V>::store(tail, scaled);
          __builtin_memcpy(dlogp + i, tail, (count - i) * sizeof(S));
        }
      }
    };
    if (mask == kAllCountOnce && count == padded && all_same(in.advantage.values, sizeof(S), count)) {
      visit(std::true_type{});
    } else {
      in.stage_mask(p.response_mask, p.batch, span, col, count);
      visit(std::false_type{});
    }
    row_loss += widened(loss);
    sums.end_run();
  };
  for_each_run(
      p.batch, p.tiling, unit, [&](const Span&) { row_loss = widened(Total(S(0))); }, run,
      [&](int64_t piece) { p.pieces[piece].loss = sum_over_lanes(row_loss); });
  p.units[unit] = sums.over_lanes();
}

template <class V, template <class> class Hyper>
void forward_unit(const LossParams& p, int64_t unit) {
  const bool options = p.options.has_entropy || p.options.has_ref || p.options.is_rule != kIsAsGiven ||
                       p.rollout_is_weights.data != nullptr;
  options ? forward_unit_with<V, Hyper, true>(p, unit) : forward_unit_with<V, Hyper, false>(p, unit);
}

}  // namespace
}  // namespace maspo
