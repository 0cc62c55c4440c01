// exp of a register of doubles, inline as that of floats (vec_exp.h) is.
//
//   x = n log 2 + r, |r| <= log 2 / 2;  exp(x) = 2^n exp(r),  exp(r) = 1 + r + r^2 q(r), q minimax of degree 10 (2^-60)
//
// Within 0.85 ULP, subnormal results included; inf, NaN, an overflow and an underflow are as in exp. Tested in
// tests/building/test_exp.py.
#pragma once

#include "cpu/vec.h"

namespace maspo {
namespace {

// Its low bits become the exponent field.
template <int N>
MASPO_VEC_OP Vec<double, N> power_of(typename RegisterOf<uint64_t, N>::type bits) {
  return reinterpret_cast<typename Vec<double, N>::Register>(bits << 52);
}

template <int N>
MASPO_VEC_OP Vec<double, N> exp_of(Vec<double, N> x) {
  using V = Vec<double, N>;
  // Beyond these bounds the result has long been 0 or inf. A NaN stays, and whatever n then is multiplies it.
  x = at_most(at_least(x, V(-746.0)), V(710.0));
  // Added to it, a number loses its fraction, to nearest. 2046: the low bits are the sum of the exponent fields of two powers
  // of 2 whose product is 2^n.
  const V shift = V(0x1.8p52 + 2046.0);
  const V shifted = x * V(0x1.71547652b82fep+0) + shift;
  const V n = shifted - shift;
  // log 2 in two parts, the first so short that its product with n is exact.
  V r = x - n * V(0x1.62e42fefa38p-1);
  r = r - n * V(0x1.ef35793c7673p-45);
  // Odd and even powers apart: two chains that need not wait for each other.
  const V rr = r * r;
  V even = V(0x1.1e3d2e5313ce5p-29) * rr + V(0x1.27e5b4456e90dp-22);
  V odd = V(0x1.af6be7f3ec40cp-26) * rr + V(0x1.71ddf020c602bp-19);
  even = even * rr + V(0x1.a01a01368fe4cp-16);
  odd = odd * rr + V(0x1.a01a01b37e3a8p-13);
  even = even * rr + V(0x1.6c16c16c3048bp-10);
  odd = odd * rr + V(0x1.111111110ec5dp-7);
  even = even * rr + V(0x1.5555555555503p-5);
  odd = odd * rr + V(0x1.555555555555bp-3);
  even = even * rr + V(0.5);
  // 1 + r rounded, and what that lost.
  const V one_more = V(1.0) + r;
  const V lost = r - (one_more - V(1.0));
  const V exp_r = one_more + ((odd * r + even) * rr + lost);
  // Two factors, since 2^n alone may be no normal number where exp(x) is a number: a subnormal result is rounded by the last.
  const auto sum = reinterpret_cast<typename RegisterOf<uint64_t, N>::type>(shifted.r);
  return exp_r * power_of<N>(sum >> 1) * power_of<N>(sum - (sum >> 1));
}

}  // namespace
}  // namespace maspo
