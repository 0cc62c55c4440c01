// BAPO's sums at all candidates over one unit of the batch.
#pragma once

#include "core/entropy_adv.h"
#include "cpu/pair.h"
#include "cpu/stage.h"

namespace maspo {
namespace {

template <class V>
void bapo_unit(const BapoParams& p, int64_t unit) {
  using S = scalar_t<V>;
  const BapoCandidates& c = p.candidates;
  const int count_all = candidate_count(c);
  const bool shaped = p.entropy.data != nullptr;
  double* sums = p.units + unit * count_all;
  for (int k = 0; k < count_all; ++k) sums[k] = 0.0;
  S bounds[kMaxBapoCandidates];
  for (int k = 0; k < count_all; ++k) bounds[k] = static_cast<S>(c.bound[k]);
  Run<V> in = {};

  const auto run = [&](const Span& span, int64_t col, int count) {
    if (mask_of_run(p.response_mask, p.batch, span, col, count) == kNothingCounts) return;
    in.stage_mask(p.response_mask, p.batch, span, col, count);
    in.log_prob.stage(p.log_prob, p.batch, span, col, count);
    in.old_log_prob.stage(p.old_log_prob, p.batch, span, col, count);
    in.advantage.stage(p.advantages, p.batch, span, col, count);
    in.entropy.stage(p.entropy, p.batch, span, col, count);

    total_t<V> run_sums[kMaxBapoCandidates];
    for (int k = 0; k < count_all; ++k) run_sums[k] = total_t<V>(S(0));
    const auto load = [](const Staged<S>& s, int i) { return Lanes<V>::load(s.values + i); };
    for (int i = 0; i < padded_to_lanes<V>(count); i += Lanes<V>::count) {
      V advantage = load(in.advantage, i);
      if (shaped) {
        advantage = advantage + entropy_bonus(advantage, load(in.entropy, i), V(S(p.entropy_alpha)),
                                              V(S(p.entropy_kappa)));
      }
      const BapoToken<V> token =
          bapo_token(load(in.mask, i), load(in.log_prob, i), load(in.old_log_prob, i), advantage);
      for (int k = 0; k < c.lower_count; ++k) add_to(run_sums[k], bapo_term(token, V(bounds[k]), false));
      for (int k = c.lower_count; k < count_all; ++k) add_to(run_sums[k], bapo_term(token, V(bounds[k]), true));
    }
    for (int k = 0; k < count_all; ++k) sums[k] += sum_over_lanes(run_sums[k]);
  };
  for_each_run(p.batch, p.tiling, unit, [](const Span&) {}, run, [](int64_t) {});
}

}  // namespace
}  // namespace maspo
