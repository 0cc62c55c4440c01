// exp of a register of floats, inline: a call would spill every register of the loop around it.
//
//   x = n log 2 + r, |r| <= log 2 / 2;  exp(x) = 2^n exp(r),  exp(r) = 1 + r + r^2 q(r), q minimax of degree 4
//
// Within 1 ULP where the result is at least 2^-125; smaller results are 0. inf, NaN and an overflow are as in exp. Tested
// over the whole range in tests/building/test_exp.py.
#pragma once

#include "cpu/vec.h"

namespace maspo {
namespace {

// 2^(n-1) of a number that exp_between made: its low bits become the exponent field.
template <int N>
MASPO_VEC_OP Vec<float, N> half_power_of(Vec<float, N> shifted) {
  using Register = typename Vec<float, N>::Register;
  typedef uint32_t Bits __attribute__((vector_size(N * sizeof(uint32_t))));
  return reinterpret_cast<Register>(reinterpret_cast<Bits>(shifted.r) << 23);
}

// The bounds: beyond them the result has long been 0 or inf. A NaN stays, and n, whatever it then is, multiplies it.
template <class V>
MASPO_VEC_OP V exp_from_below(V x) {
  return at_least(x, V(-87.5f));
}
template <class V>
MASPO_VEC_OP V exp_from_above(V x) {
  return at_most(x, V(89.0f));
}

template <class V>
MASPO_VEC_OP V exp_between(V x) {
  // Added to it, a number loses its fraction, to nearest. 126: the low bits are the exponent field of 2^(n-1); that of 2^n
  // would overflow where exp(x) does not yet.
  const V shift = V(0x1.8p23f + 126.0f);
  const V shifted = x * V(1.44269504f) + shift;
  const V n = shifted - shift;
  V r = x - n * V(0x1.62e43p-1f);
  r = r - n * V(-0x1.05c610p-29f);
  // 2 exp(r), by coefficients twice as large.
  V q = V(0x1.6a23a2p-9f) * r + V(0x1.123a1ep-6f);
  q = q * r + V(0x1.5558f4p-4f);
  q = q * r + V(0x1.555492p-2f);
  q = q * r + V(0x1.fffffcp-1f);
  q = q * r + V(2.0f);
  q = q * r + V(2.0f);
  return q * half_power_of(shifted);
}

template <int N>
MASPO_VEC_OP Vec<float, N> exp_of(Vec<float, N> x) {
  return exp_between(exp_from_above(exp_from_below(x)));
}
template <int N>
MASPO_VEC_OP Vec<float, N> exp_of_at_most_80(Vec<float, N> x) {
  return exp_between(exp_from_below(x));
}
template <int N>
MASPO_VEC_OP Vec<float, N> exp_of_within_80(Vec<float, N> x) {
  return exp_between(x);
}

}  // namespace
}  // namespace maspo
