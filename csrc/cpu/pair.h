// Two values worked on as one, or four as a pair of pairs. The way of a token is one long chain of operations that wait
// for each other; several of them side by side keep the processor busy while they do.
#pragma once

#include "cpu/vec_exp.h"

namespace maspo {
namespace {

template <class V>
struct Pair {
  struct Flag {
    flag_t<V> first, second;
    friend inline __attribute__((always_inline)) Flag operator&(Flag a, Flag b) {
      return {a.first & b.first, a.second & b.second};
    }
    friend inline __attribute__((always_inline)) Flag operator|(Flag a, Flag b) {
      return {a.first | b.first, a.second | b.second};
    }
    friend inline __attribute__((always_inline)) Flag operator!(Flag a) { return {!a.first, !a.second}; }
  };

  V first, second;

  Pair() = default;
  inline __attribute__((always_inline)) Pair(V a, V b) : first(a), second(b) {}
  inline __attribute__((always_inline)) explicit Pair(scalar_t<V> value) : first(value), second(value) {}

#define MASPO_FRIEND friend inline __attribute__((always_inline))
  MASPO_FRIEND Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
  MASPO_FRIEND Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
  MASPO_FRIEND Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
  MASPO_FRIEND Pair operator/(Pair a, Pair b) { return {a.first / b.first, a.second / b.second}; }
  MASPO_FRIEND Pair operator-(Pair a) { return {-a.first, -a.second}; }
  MASPO_FRIEND Pair& operator+=(Pair& a, Pair b) { return a = a + b; }
  MASPO_FRIEND Flag operator<(Pair a, Pair b) { return {a.first < b.first, a.second < b.second}; }
  MASPO_FRIEND Flag operator<=(Pair a, Pair b) { return {a.first <= b.first, a.second <= b.second}; }
  MASPO_FRIEND Flag operator>(Pair a, Pair b) { return {a.first > b.first, a.second > b.second}; }
  MASPO_FRIEND Flag operator>=(Pair a, Pair b) { return {a.first >= b.first, a.second >= b.second}; }
  MASPO_FRIEND Flag operator!=(Pair a, Pair b) { return {a.first != b.first, a.second != b.second}; }
  MASPO_FRIEND Flag operator==(Pair a, Pair b) { return {a.first == b.first, a.second == b.second}; }
  MASPO_FRIEND Pair select(Flag f, Pair yes, Pair no) {
    return {select(f.first, yes.first, no.first), select(f.second, yes.second, no.second)};
  }
  MASPO_FRIEND Pair at_least(Pair a, Pair b) { return {at_least(a.first, b.first), at_least(a.second, b.second)}; }
  MASPO_FRIEND Pair at_most(Pair a, Pair b) { return {at_most(a.first, b.first), at_most(a.second, b.second)}; }
  MASPO_FRIEND Pair half_power_of(Pair a) { return {half_power_of(a.first), half_power_of(a.second)}; }
  MASPO_FRIEND Pair sqrt_of(Pair a) { return {sqrt_of(a.first), sqrt_of(a.second)}; }
  // A sum over tokens is one register, whichever way they come.
  MASPO_FRIEND void add_to(total_t<V>& total, Pair v) { add_to(total, v.first), add_to(total, v.second); }
  MASPO_FRIEND void lower_to(total_t<V>& least, Pair v) { lower_to(least, v.first), lower_to(least, v.second); }
  MASPO_FRIEND void raise_to(total_t<V>& most, Pair v) { raise_to(most, v.first), raise_to(most, v.second); }
#undef MASPO_FRIEND
};

}  // namespace

template <class V>
struct Scalar<Pair<V>> {
  using type = scalar_t<V>;
};

template <class V>
struct Total<Pair<V>> {
  using type = total_t<V>;
};

namespace {

template <class V>
MASPO_VEC_OP Pair<V> exp_of(Pair<V> x) {
  return exp_between(exp_from_above(exp_from_below(x)));
}
template <class V>
MASPO_VEC_OP Pair<V> exp_of_at_most_80(Pair<V> x) {
  return exp_between(exp_from_below(x));
}
template <class V>
MASPO_VEC_OP Pair<V> exp_of_within_80(Pair<V> x) {
  return exp_between(x);
}

template <class V>
struct Lanes<Pair<V>> {
  using S = scalar_t<V>;
  static constexpr int count = 2 * Lanes<V>::count;
  MASPO_VEC_OP Pair<V> load(const S* p) { return {Lanes<V>::load(p), Lanes<V>::load(p + Lanes<V>::count)}; }
  MASPO_VEC_OP void store(S* p, Pair<V> v) {
    Lanes<V>::store(p, v.first);
    Lanes<V>::store(p + Lanes<V>::count, v.second);
  }
};

}  // namespace
}  // namespace maspo
