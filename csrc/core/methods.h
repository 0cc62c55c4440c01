// The dispatch: one line per method. A ratio_mode is one of these with its hyper-parameters (maspo_ext/methods/).
#pragma once

#include "core/clip.h"
#include "core/dac.h"
#include "core/maspo.h"
#include "core/sapo.h"

// X(enumerator, name in maspo::loss_forward, hyper-parameters)
#define MASPO_METHODS(X)               \
  X(kMethodClip, "clip", ClipHyper)    \
  X(kMethodDac, "dac", DacHyper)       \
  X(kMethodMaspo, "maspo", MaspoHyper) \
  X(kMethodSapo, "sapo", SapoHyper)

namespace maspo {

enum Method {
#define MASPO_ENUMERATOR(id, name, Hyper) id,
  MASPO_METHODS(MASPO_ENUMERATOR)
#undef MASPO_ENUMERATOR
      kNumMethods
};

constexpr const char* kMethodNames[kNumMethods] = {
#define MASPO_NAME(id, name, Hyper) name,
    MASPO_METHODS(MASPO_NAME)
#undef MASPO_NAME
};

MASPO_HD void finish_method_stats(int32_t method, const double* sums, double tokens, double* stats) {
  switch (method) {
#define MASPO_FINISH(id, name, Hyper) \
  case id:                            \
    return Hyper<double>::finish(sums, tokens, stats);
    MASPO_METHODS(MASPO_FINISH)
#undef MASPO_FINISH
  }
}

}  // namespace maspo
