// Copies from global to shared memory that a thread starts and waits for later: what is on its way takes no registers. A
// thread reads what it has copied itself, so no barrier is needed.
#pragma once

#include "cuda/reduce.cuh"

// The block's memory that its launch says the size of. A macro, since the emulation in tests/ makes it otherwise; so are the
// copies its own there, and are made when they are waited for.
#if !defined(MASPO_DYNAMIC_SHARED)
#define MASPO_DYNAMIC_SHARED(T, name)                 \
  extern __shared__ uint4 maspo_dynamic_shared[];     \
  T* const name = reinterpret_cast<T*>(maspo_dynamic_shared)

namespace maspo {

// Of 8 or 16 bytes, at addresses that are multiples of their size.
template <class T>
__device__ __forceinline__ void copy_async(T* to, const T* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (sizeof(T) == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    static_assert(sizeof(T) == 8, "8 or 16 bytes");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(from) : "memory");
  }
}

// Ends a group: those started since the last one.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most so many groups, the last ones, are still on their way.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace maspo
#endif
