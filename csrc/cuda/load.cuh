// Neighbouring numbers to and from registers: packs of one dtype, and a batch's tokens by four, of any dtype and stride.
#pragma once

#include "cuda/format.cuh"
#include "cuda/reduce.cuh"

namespace maspo {

__device__ __forceinline__ int warps_of_block() { return blockDim.x / kWarp; }
__device__ __forceinline__ int64_t this_warp() {
  return static_cast<int64_t>(blockIdx.x) * warps_of_block() + threadIdx.x / kWarp;
}

// Calls each(part) for parts of kMaxSteps steps of a piece.
template <class Each>
__device__ __forceinline__ void for_each_part(const Span& span, Each each) {
  for (int64_t first = span.first; first < span.last; first += kMaxSteps * kStepTokens) {
    each(Span{span.row, first, bounded(span.last, 0, first + kMaxSteps * kStepTokens), span.start});
  }
}

// Calls each(col, count) for this lane's steps through a piece, as often in every lane: count of the kLane tokens from col on
// exist, which may be none.
template <class Each>
__device__ __forceinline__ void for_each_four(const Span& span, Each each) {
  for (int64_t first = span.first; first < span.last; first += kStepTokens) {
    const int64_t col = first + threadIdx.x % kWarp * kLane;
    each(col, static_cast<int>(bounded(span.last - col, 0, kLane)));
  }
}

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
__device__ __forceinline__ bool is_aligned(const void* p) {
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

// `count` of the four exist; the others are left as they are.
template <class T, class S, class Convert>
__device__ __forceinline__ void load_as(const T* p, int64_t stride, int count, S (&out)[kLane], Convert convert) {
  if (count == kLane && stride == 1 && aligned_for_pack<kLane>(p)) {
    const Pack<T, kLane> four = load_pack<kLane>(p);
#pragma unroll
    for (int i = 0; i < kLane; ++i) out[i] = convert(four.value[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      if (i < count) out[i] = convert(p[i * stride]);
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

template <class T, class S, class Convert>
__device__ __forceinline__ void load_view(const View& v, int64_t offset, int count, S (&out)[kLane], Convert convert) {
  load_as(static_cast<const T*>(v.data) + offset, v.col_stride, count, out, convert);
}

// The switch is uniform over the grid.
template <class S>
__device__ __forceinline__ void load_four(const View& v, int64_t offset, int count, S (&out)[kLane]) {
  switch (v.dtype) {
    case kFloat32:
      return load_view<float>(v, offset, count, out, Cast<S>());
    case kFloat64:
      return load_view<double>(v, offset, count, out, Cast<S>());
    case kBFloat16:
      return load_view<uint16_t>(v, offset, count, out, FromBFloat16<S>());
    case kFloat16:
      return load_view<uint16_t>(v, offset, count, out, FromFloat16<S>());
    case kUInt8:
      return load_view<uint8_t>(v, offset, count, out, Cast<S>());
    case kInt8:
      return load_view<int8_t>(v, offset, count, out, Cast<S>());
    case kInt16:
      return load_view<int16_t>(v, offset, count, out, Cast<S>());
    case kInt32:
      return load_view<int32_t>(v, offset, count, out, Cast<S>());
    case kInt64:
      return load_view<int64_t>(v, offset, count, out, Cast<S>());
  }
}

template <class S>
__device__ __forceinline__ bool any_token(const S (&mask)[kLane]) {
  return mask[0] != S(0) || mask[1] != S(0) || mask[2] != S(0) || mask[3] != S(0);
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
