// The dual clip (arXiv 1912.09729): for A < 0 the ratio counts as at most c, and beyond c there is no gradient.
#pragma once

#include "core/ratio.h"

namespace maspo {

template <class V>
MASPO_HD Ratio<V> dual_clip(const Ratio<V>& r, flag_t<V> beyond, V c) {
  Ratio<V> capped = r;
  capped.ratio = select(beyond, c, r.ratio);
  capped.inside = r.inside & !beyond;
  return capped;
}

}  // namespace maspo
