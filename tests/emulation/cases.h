// What the programs of random cases share: drawing, comparing, and one case per seed.
//
//   <program> <first seed> <count> [method]     exit 0: all agree; 1: the first that does not is described; 3: the
//                                               emulation found a wrong barrier or shuffle
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda_runtime.h"
#include "memory.h"

namespace emulation {

class Draw {
 public:
  explicit Draw(uint64_t seed) : generator_(seed) {}
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(generator_); }
  double normal() { return std::normal_distribution<double>()(generator_); }

 private:
  std::mt19937_64 generator_;
};

// A number as an element of `dtype` at `p`.
inline void store_number(void* p, DType dtype, double v) {
  const float f = static_cast<float>(v);
  const uint16_t half = dtype == kBFloat16 ? bfloat16_from_float(f) : float16_from_float(f);
  const int64_t integer = static_cast<int64_t>(v);
  if (dtype == kFloat32) {
    std::memcpy(p, &f, 4);
  } else if (dtype == kFloat64) {
    std::memcpy(p, &v, 8);
  } else if (dtype == kBFloat16 || dtype == kFloat16) {
    std::memcpy(p, &half, 2);
  } else {
    std::memcpy(p, &integer, size_of(dtype));  // little endian
  }
}

struct Failure {
  std::string what;
};

inline bool close(double a, double b, double tolerance) {
  return a == b || (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= tolerance;
}

inline void compare(const char* name, const std::vector<double>& actual, const std::vector<double>& expected,
                    double rtol, double scale) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!close(actual[i], expected[i], rtol * std::fmax(scale, std::fabs(expected[i])))) {
      throw Failure{std::string(name) + "[" + std::to_string(i) + "]: " + std::to_string(actual[i]) + ", expected " +
                    std::to_string(expected[i])};
    }
  }
}

// one_case(seed, method); the method is -1 where none is asked for.
template <class OneCase>
int run_cases(int argc, char** argv, OneCase one_case) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s <first seed> <count> [method]\n", argv[0]), 2;
  const uint64_t first = std::strtoull(argv[1], nullptr, 10), count = std::strtoull(argv[2], nullptr, 10);
  const int method = argc > 3 ? std::atoi(argv[3]) : -1;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    cuda_on_host::set_seed(seed);
    try {
      one_case(seed, method);
    } catch (const Failure& failure) {
      return std::fprintf(stderr, "seed %lu: %s\n", static_cast<unsigned long>(seed), failure.what.c_str()), 1;
    }
  }
  std::printf("%lu cases agree\n", static_cast<unsigned long>(count));
  return 0;
}

}  // namespace emulation
