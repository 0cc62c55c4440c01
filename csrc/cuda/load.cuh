// Neighbouring numbers to and from registers: packs of one dtype, and a batch's tokens by four, of any dtype and stride.
#pragma once

#include "cuda/format.cuh"
#include "cuda/reduce.cuh"

namespace maspo {

constexpr int kLane = 4;  // tokens of a lane's step

// Calls each(span, col, count) for this lane's steps through the piece of its warp; does nothing where there is no such piece.
template <class Each>
__device__ __forceinline__ void for_each_four(const Batch& b, const Tiling& t, int64_t piece, Each each) {
  if (piece >= piece_count(b, t)) return;
  const Span span = piece_span(b, t, piece / t.pieces_per_row, piece % t.pieces_per_row);
  for (int64_t col = span.first + threadIdx.x % kWarp * kLane; col < span.last; col += kWarp * kLane) {
    each(span, col, span.last - col < kLane ? static_cast<int>(span.last - col) : kLane);
  }
}

// The bytes that one access moves, of so many that lie side by side.
constexpr int kAccessBytes = 16;
template <class T, int N>
constexpr int kPackAccess = sizeof(T) * N < kAccessBytes ? sizeof(T) * N : kAccessBytes;

template <class T, int N>
struct alignas(kPackAccess<T, N>) Pack {
  T value[N];
};

template <int N, class T>
__device__ __forceinline__ bool aligned_for_pack(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Pack<T, N>) == 0;
}

// At an address that is aligned for it.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

// `count` of the four exist; the others are left as they are.
template <class T, class S, class Convert>
__device__ __forceinline__ void load_as(const View& v, int64_t offset, int count, S (&out)[kLane], Convert convert) {
  const T* p = static_cast<const T*>(v.data) + offset;
  if (count == kLane && v.col_stride == 1 && aligned_for_pack<kLane>(p)) {
    const Pack<T, kLane> four = load_pack<kLane>(p);
#pragma unroll
    for (int i = 0; i < kLane; ++i) out[i] = convert(four.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      if (i < count) out[i] = convert(p[i * v.col_stride]);
    }
  }
}

template <class S>
struct Cast {
  template <class T>
  __device__ __forceinline__ S operator()(T value) const {
    return static_cast<S>(value);
  }
};
template <class S>
struct FromBFloat16 {
  __device__ __forceinline__ S operator()(uint16_t bits) const { return static_cast<S>(float_from_bfloat16(bits)); }
};
template <class S>
struct FromFloat16 {
  __device__ __forceinline__ S operator()(uint16_t bits) const { return static_cast<S>(float_from_float16(bits)); }
};

// The switch is uniform over the grid.
template <class S>
__device__ __forceinline__ void load_four(const View& v, int64_t offset, int count, S (&out)[kLane]) {
  switch (v.dtype) {
    case kFloat32:
      return load_as<float>(v, offset, count, out, Cast<S>());
    case kFloat64:
      return load_as<double>(v, offset, count, out, Cast<S>());
    case kBFloat16:
      return load_as<uint16_t>(v, offset, count, out, FromBFloat16<S>());
    case kFloat16:
      return load_as<uint16_t>(v, offset, count, out, FromFloat16<S>());
    case kUInt8:
      return load_as<uint8_t>(v, offset, count, out, Cast<S>());
    case kInt8:
      return load_as<int8_t>(v, offset, count, out, Cast<S>());
    case kInt16:
      return load_as<int16_t>(v, offset, count, out, Cast<S>());
    case kInt32:
      return load_as<int32_t>(v, offset, count, out, Cast<S>());
    case kInt64:
      return load_as<int64_t>(v, offset, count, out, Cast<S>());
  }
}

// The machine's words for a store of this many bytes.
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

// As __stcg: a plain store of a struct the compiler takes apart into its elements where the offset has 64 bits.
template <class T, int N>
__device__ __forceinline__ void store_aligned(T* p, const T (&values)[N]) {
  using W = typename Word<kPackAccess<T, N>>::type;
  constexpr int kStores = sizeof(T) * N / sizeof(W);
  W words[kStores];
  memcpy(words, values, sizeof(words));
#pragma unroll
  for (int i = 0; i < kStores; ++i) __stcg(reinterpret_cast<W*>(p) + i, words[i]);
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
