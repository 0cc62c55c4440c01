// Work on torch's CPU threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace maspo {

// work(i) for every i below `count`, some of them at once: whichever thread is free takes the next `at_once`. Shares fixed
// beforehand would let one wait for the other, since padding takes no time, and a thread may be held up.
template <class Work>
void for_each_on_threads(int64_t count, int64_t at_once, Work work) {
  std::atomic<int64_t> next(0);
  torch::stable::parallel_for(0, (count + at_once - 1) / at_once, 1, [&](int64_t, int64_t) {
    for (int64_t first; (first = next.fetch_add(at_once, std::memory_order_relaxed)) < count;) {
      const int64_t last = std::min(first + at_once, count);
      for (int64_t i = first; i < last; ++i) work(i);
    }
  });
}

}  // namespace maspo
