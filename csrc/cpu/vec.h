// A register of N floats or doubles with the operations that csrc/core asks of a value type. Included once per instruction
// set, after the target was chosen; the anonymous namespace keeps each copy to its own object file.
#pragma once

#include "core/portable.h"

namespace maspo {
namespace {

#define MASPO_VEC_OP static inline __attribute__((always_inline))

template <class S, int N>
struct RegisterOf {
  typedef S type __attribute__((vector_size(N * sizeof(S))));
};

template <class S, int N>
struct Vec {
  using Register = typename RegisterOf<S, N>::type;  // named outside: gcc drops the attribute from a parameter's type
  // What comparing two registers gives: all bits of a lane set where true.
  struct Flag {
    decltype(Register() < Register()) bits;
    friend inline __attribute__((always_inline)) Flag operator&(Flag a, Flag b) { return {a.bits & b.bits}; }
    friend inline __attribute__((always_inline)) Flag operator|(Flag a, Flag b) { return {a.bits | b.bits}; }
    friend inline __attribute__((always_inline)) Flag operator!(Flag a) { return {~a.bits}; }
  };

  Register r;

  Vec() = default;
  inline __attribute__((always_inline)) Vec(Register value) : r(value) {}
  inline __attribute__((always_inline)) explicit Vec(S value) : r(value - Register{}) {}

#define MASPO_FRIEND friend inline __attribute__((always_inline))
  MASPO_FRIEND Vec operator+(Vec a, Vec b) { return a.r + b.r; }
  MASPO_FRIEND Vec operator-(Vec a, Vec b) { return a.r - b.r; }
  MASPO_FRIEND Vec operator*(Vec a, Vec b) { return a.r * b.r; }
  MASPO_FRIEND Vec operator/(Vec a, Vec b) { return a.r / b.r; }
  MASPO_FRIEND Vec operator-(Vec a) { return -a.r; }
  MASPO_FRIEND Vec& operator+=(Vec& a, Vec b) { return a.r += b.r, a; }
  MASPO_FRIEND Flag operator<(Vec a, Vec b) { return {a.r < b.r}; }
  MASPO_FRIEND Flag operator<=(Vec a, Vec b) { return {a.r <= b.r}; }
  MASPO_FRIEND Flag operator>(Vec a, Vec b) { return {a.r > b.r}; }
  MASPO_FRIEND Flag operator>=(Vec a, Vec b) { return {a.r >= b.r}; }
  MASPO_FRIEND Flag operator==(Vec a, Vec b) { return {a.r == b.r}; }
  MASPO_FRIEND Flag operator!=(Vec a, Vec b) { return {a.r != b.r}; }
  MASPO_FRIEND Vec select(Flag f, Vec yes, Vec no) { return f.bits ? yes.r : no.r; }
  MASPO_FRIEND Vec at_least(Vec value, Vec low) { return larger_of(low, value); }
  MASPO_FRIEND Vec at_most(Vec value, Vec high) { return smaller_of(high, value); }
#undef MASPO_FRIEND
};

}  // namespace

template <class S, int N>
struct Scalar<Vec<S, N>> {
  using type = S;
};

namespace {

// How many tokens a value holds, and how to move them; for the plain build a value is one float or double.
template <class V>
struct Lanes {
  static constexpr int count = 1;
  MASPO_VEC_OP V load(const V* p) { return *p; }
  MASPO_VEC_OP void store(V* p, V v) { *p = v; }
};

template <class S, int N>
struct Lanes<Vec<S, N>> {
  static constexpr int count = N;
  MASPO_VEC_OP Vec<S, N> load(const S* p) {
    Vec<S, N> v;
    __builtin_memcpy(&v.r, p, sizeof(v.r));
    return v;
  }
  MASPO_VEC_OP void store(S* p, Vec<S, N> v) { __builtin_memcpy(p, &v.r, sizeof(v.r)); }
};

// A sum in doubles: of a float register the two halves, so that lanes need adding up only once, at the very end.
MASPO_VEC_OP double widened(float v) { return v; }
MASPO_VEC_OP double widened(double v) { return v; }
template <int N>
MASPO_VEC_OP Vec<double, N> widened(Vec<double, N> v) {
  return v;
}
template <int N>
MASPO_VEC_OP Vec<double, N / 2> widened(Vec<float, N> v) {
  typename RegisterOf<float, N / 2>::type half[2];
  __builtin_memcpy(half, &v.r, sizeof(half));
  using Doubles = Vec<double, N / 2>;
  return Doubles(__builtin_convertvector(half[0], typename Doubles::Register)) +
         Doubles(__builtin_convertvector(half[1], typename Doubles::Register));
}
template <class V>
using widened_t = decltype(widened(V()));

}  // namespace
}  // namespace maspo
