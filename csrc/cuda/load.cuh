// A batch's tokens to registers by four, of any dtype and stride.
#pragma once

#include "cuda/format.cuh"
#include "cuda/pack.cuh"

namespace maspo {

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

}  // namespace maspo
