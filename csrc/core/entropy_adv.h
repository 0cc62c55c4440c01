// Entropy Adv. (arXiv 2506.14758): A' = A + min(alpha H, |A| / kappa), before any method. For kappa >= 1 the sign stays.
#pragma once

#include "core/portable.h"

namespace maspo {

// The addition to A. No gradient flows through H. An H below 0, which only rounding can give, adds nothing.
template <class V>
MASPO_HD V entropy_bonus(V advantage, V entropy, V alpha, V kappa) {
  const V most = abs_of(advantage) / kappa, bonus = at_most(alpha * at_least(entropy, V(scalar_t<V>(0))), most);
  return select(most == most, bonus, most);  // at_most keeps a NaN of its first argument
}

}  // namespace maspo
