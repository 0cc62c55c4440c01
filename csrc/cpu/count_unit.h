// The tokens of a unit's pieces: with these every row's scale is known before the pass that writes gradients.
#pragma once

#include "cpu/stage.h"

namespace maspo {
namespace {

template <class V>
void count_unit(const LossParams& p, int64_t unit) {
  using S = scalar_t<V>;
  Staged<S> mask;
  widened_t<V> tokens;
  const auto run = [&](const Span& span, int64_t col, int count) {
    mask.stage(p.response_mask, p.batch, span, col, count, padded_to_lanes<V>(count));
    V of_run = V(S(0));
    for (int i = 0; i < count; i += Lanes<V>::count) of_run += Lanes<V>::load(mask.values + i);
    tokens += widened(of_run);
  };
  for_each_run(
      p.batch, p.tiling, unit, [&](const Span&) { tokens = widened(V(S(0))); }, run,
      [&](int64_t piece) { p.pieces[piece].tokens = sum_over_lanes(tokens); });
}

}  // namespace
}  // namespace maspo
