// The largest error of the vectors' exp, in ULP of the exact result rounded to float, over every `step`-th float; exits with
// 1 and a line where a special value is wrong. MASPO_ISA_* are given on the command line, as in csrc/cpu/isa_avx2.cpp.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/isa_vec.h"

namespace maspo {
namespace {

using Wide = Pair<Floats>;
constexpr int kLanes = Lanes<Wide>::count;

enum Kind { kAny, kAtMost80, kWithin80 };

Wide exp_of_kind(Wide x, int kind) {
  return kind == kAny ? exp_of(x) : kind == kAtMost80 ? exp_of_at_most_80(x) : exp_of_within_80(x);
}

bool is_of_kind(float x, int kind) {
  return x != x || kind == kAny || (x <= 80.0f && (kind == kAtMost80 || x >= -80.0f));
}

// Of one value and its result: the error, or -1 where a special value is wrong.
double error_of(float x, float y) {
  constexpr float kLeast = 0x1p-125f;
  const double exact = std::exp(static_cast<double>(x));
  if (x != x) return y != y ? 0 : -1;
  if (static_cast<float>(exact) == INFINITY) return y == INFINITY ? 0 : -1;
  if (exact < kLeast) return y == 0 || std::fabs(y - exact) <= 0x1p-149 * (1 + exact * 0x1p126) ? 0 : -1;
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(y - exact) / std::ldexp(1.0, exponent - 24);
}

int run(uint64_t step) {
  double largest = 0;
  for (int kind = kAny; kind <= kWithin80; ++kind) {
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += kLanes * step) {
      float x[kLanes], y[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const uint32_t b = static_cast<uint32_t>(bits + i * step);
        std::memcpy(&x[i], &b, sizeof(b));
        if (!is_of_kind(x[i], kind)) x[i] = 0.0f;
      }
      Lanes<Wide>::store(y, exp_of_kind(Lanes<Wide>::load(x), kind));
      for (int i = 0; i < kLanes; ++i) {
        const double error = error_of(x[i], y[i]);
        if (error < 0) return std::printf("exp(%a) = %a\n", x[i], y[i]), 1;
        largest = error > largest ? error : largest;
      }
    }
  }
  std::printf("%.3f\n", largest);
  return 0;
}

}  // namespace
}  // namespace maspo

int main(int, char** arguments) { return maspo::run(std::strtoull(arguments[1], nullptr, 10)); }
