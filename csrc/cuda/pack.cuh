// Packs of neighbouring numbers of one dtype, to and from registers by accesses of 16 bytes.
#pragma once

#include "cuda/tiling.h"

namespace maspo {

// The bytes that one access moves, of so many that lie side by side.
constexpr int kAccessBytes = 16;
template <class T>
constexpr int kPackWords = kAccessBytes / static_cast<int>(sizeof(T));
template <class T, int N>
constexpr int kPackAccess = sizeof(T) * N < kAccessBytes ? sizeof(T) * N : kAccessBytes;

template <class T, int N>
struct alignas(kPackAccess<T, N>) Pack {
  T value[N];
};

template <int kBytes>
MASPO_HD bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kBytes == 0;
}
template <int N, class T>
__device__ __forceinline__ bool aligned_for_pack(const T* p) {
  return is_aligned<alignof(Pack<T, N>)>(p);
}

// The machine's words of this many bytes.
template <int kBytes>
struct Word;
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// At an address that is aligned for it.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

// The same at any address, which aligned says is one for it.
template <class T>
__device__ __forceinline__ Pack<T, kLane> load_pack(const T* p, bool aligned) {
  return aligned ? load_pack<kLane>(p) : Pack<T, kLane>{p[0], p[1], p[2], p[3]};
}

// With __stwb: a plain store, of a struct or of words, the compiler takes apart into its elements where the offset has 64 bits.
template <class T, int N>
__device__ __forceinline__ void store_aligned(T* p, const T (&values)[N]) {
  using W = typename Word<kPackAccess<T, N>>::type;
  constexpr int kStores = sizeof(T) * N / sizeof(W);
  W words[kStores];
  memcpy(words, values, sizeof(words));
#pragma unroll
  for (int i = 0; i < kStores; ++i) __stwb(reinterpret_cast<W*>(p) + i, words[i]);
}

// `count` of the values exist.
template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, int count, const T (&values)[N]) {
  if (count == N && aligned_for_pack<N>(p)) {
    store_aligned(p, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) p[i] = values[i];
    }
  }
}

}  // namespace maspo
