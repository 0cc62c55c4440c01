// Hyper-parameters for the programs that run every method: in the order of each XHyper::from.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "core/methods.h"
#include "core/params.h"

namespace maspo {

constexpr int kGateGradient = 7;  // among those of MASPO

// By the method's name and not by its place: with another's numbers, or with zeros, engines agree just as well.
inline void set_hyper(LossParams& p) {
  const auto set = [&p](std::initializer_list<double> values) {
    std::fill(std::copy(values.begin(), values.end(), p.hyper), std::end(p.hyper), 0.0);
  };
  switch (p.method) {
    case kMethodClip:
      return set({0.8, 1.2});
    case kMethodDac:
      return set({0.2, 0.28, 10.0});
    case kMethodMaspo:
      return set({1.0, 0.3, 10.0, 0.1, 10.0, 0.03, 0.03, 0.0, 0.8, 1.2});
    case kMethodSapo:
      return set({1.0, 1.05});
  }
  throw std::logic_error("tests/emulation/hyper.h: expected hyper-parameters of every method, got none of number " +
                         std::to_string(p.method) + " of core/methods.h. Add a case for it.");
}

}  // namespace maspo
