// Four neighbouring tokens at a time, of any dtype and stride, to and from registers.
#pragma once

#include "core/half.h"
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

template <class T>
struct alignas(sizeof(T) * kLane <= 16 ? sizeof(T) * kLane : 16) Four {
  T value[kLane];
};

template <class T>
__device__ __forceinline__ bool aligned_for_four(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % alignof(Four<T>) == 0;
}

// `count` of the four exist; the others are left as they are.
template <class T, class S, class Convert>
__device__ __forceinline__ void load_as(const View& v, int64_t offset, int count, S (&out)[kLane], Convert convert) {
  const T* p = static_cast<const T*>(v.data) + offset;
  if (count == kLane && v.col_stride == 1 && aligned_for_four(p)) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
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
template <class T>
__device__ __forceinline__ void store_aligned(T* p, const T (&values)[kLane]) {
  constexpr int kBytes = sizeof(T) * kLane < 16 ? sizeof(T) * kLane : 16;
  using W = typename Word<kBytes>::type;
  constexpr int kWords = sizeof(T) * kLane / kBytes;
  W words[kWords];
  memcpy(words, values, sizeof(words));
#pragma unroll
  for (int i = 0; i < kWords; ++i) __stcg(reinterpret_cast<W*>(p) + i, words[i]);
}

template <class T>
__device__ __forceinline__ void store_four(T* p, int count, const T (&values)[kLane]) {
  if (count == kLane && aligned_for_four(p)) {
    store_aligned(p, values);
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      if (i < count) p[i] = values[i];
    }
  }
}

}  // namespace maspo
