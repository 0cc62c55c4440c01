// The largest errors of the vectors' exp, of floats and of doubles, in ULP of the exact result rounded to their type; exits
// with 1 and a line where a special value is wrong. On the command line MASPO_ISA_*, as in csrc/cpu/isa_avx2.cpp, and
// MASPO_FEWER: 1, or how many times fewer numbers than usual.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/isa_vec.h"

namespace maspo {

enum Kind { kAny, kAtMost80, kWithin80 };

// Among the functions of csrc/core, where the maths calls exp, too: a vector that has no shorter way takes theirs.
template <class V>
V exp_of_kind(V x, int kind) {
  return kind == kAny ? exp_of(x) : kind == kAtMost80 ? exp_of_at_most_80(x) : exp_of_within_80(x);
}

namespace {

// Bit patterns: first, first + step, ... below last.
struct Range {
  uint64_t first, last, step;
};

template <class S>
struct Of;
template <>
struct Of<float> {
  using Value = Pair<Floats>;
  using Bits = uint32_t;
  using Exact = double;
  static constexpr double kLeast = 0x1p-125;  // smaller results may be 0
  static std::vector<Range> ranges() { return {{0, uint64_t{1} << 32, uint64_t{101} * MASPO_FEWER}}; }
};
template <>
struct Of<double> {
  using Value = Doubles;
  using Bits = uint64_t;
  using Exact = long double;
  static constexpr double kLeast = 0;

  // All numbers roughly, those whose exp is neither 1 nor 0 nor inf finely, and the neighbours of where that changes.
  static std::vector<Range> ranges() {
    constexpr uint64_t kSign = uint64_t{1} << 63, kRough = (uint64_t{1} << 50) * MASPO_FEWER + 1;
    constexpr uint64_t kFine = (uint64_t{1} << 37) * MASPO_FEWER + 1, kNear = 64;
    constexpr double kInf = INFINITY;
    const uint64_t first = bits_of(0x1p-54), last = bits_of(750.0);
    std::vector<Range> all = {{0, ~uint64_t{0} - kRough * 64, kRough}, {first, last, kFine}, {kSign | first, kSign | last, kFine}};
    // log of the largest number, of the least normal one, of half the least; the bounds; inf and the NaNs behind it.
    for (const double x : {709.782712893384, -708.3964185322641, -745.1332191019412, -746.0, 710.0, kInf, -kInf}) {
      all.push_back({bits_of(x) - kNear, bits_of(x) + kNear, 1});
    }
    for (const uint64_t sign : {uint64_t{0}, kSign}) all.push_back({sign, sign + kNear, 1});  // 0 and what is next to it
    return all;
  }

  static uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof(x));
    return bits;
  }
};

template <class S>
bool is_of_kind(S x, int kind) {
  return x != x || kind == kAny || (x <= 80 && (kind == kAtMost80 || x >= -80));
}

// Of one value and its result: the error, or -1 where a special value is wrong.
template <class S>
double error_of(S x, S y) {
  using Exact = typename Of<S>::Exact;
  using Limit = std::numeric_limits<S>;
  const Exact exact = std::exp(static_cast<Exact>(x));
  if (x != x) return y != y ? 0 : -1;
  if (x == 0) return y == 1 ? 0 : -1;
  if (static_cast<S>(exact) == Limit::infinity()) return y == Limit::infinity() ? 0 : -1;
  if (exact < Of<S>::kLeast) return y == 0 || std::fabs(y - exact) <= 0x1p-149 * (1 + exact * 0x1p126) ? 0 : -1;
  const Exact ulp = std::exp2(std::logb(exact) + 1 - Limit::digits);
  return std::fabs(y - exact) / std::fmax(ulp, static_cast<Exact>(Limit::denorm_min()));
}

// Negative after a wrong one.
template <class S>
double largest_error() {
  using V = typename Of<S>::Value;
  constexpr int kLanes = Lanes<V>::count;
  double largest = 0;
  for (int kind = kAny; kind <= kWithin80; ++kind) {
    for (const Range& range : Of<S>::ranges()) {
      for (uint64_t bits = range.first; bits < range.last; bits += kLanes * range.step) {
        S x[kLanes], y[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const auto b = static_cast<typename Of<S>::Bits>(bits + i * range.step);
          std::memcpy(&x[i], &b, sizeof(b));
          if (!is_of_kind(x[i], kind)) x[i] = 0;
        }
        Lanes<V>::store(y, exp_of_kind(Lanes<V>::load(x), kind));
        for (int i = 0; i < kLanes; ++i) {
          const double error = error_of(x[i], y[i]);
          if (!(error >= 0)) return std::printf("exp(%a) = %a\n", double(x[i]), double(y[i])), -1;
          largest = error > largest ? error : largest;
        }
      }
    }
  }
  return largest;
}

}  // namespace
}  // namespace maspo

int main() {
  const double of_floats = maspo::largest_error<float>(), of_doubles = maspo::largest_error<double>();
  if (of_floats < 0 || of_doubles < 0) return 1;
  std::printf("%.3f %.3f\n", of_floats, of_doubles);
  return 0;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
