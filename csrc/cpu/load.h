// Bringing a run of tokens of any dtype and stride into a contiguous buffer of the arithmetic type, and back.
#pragma once

#include "core/half.h"
#include "core/batch.h"

namespace maspo {
namespace {

// The dtype that needs no conversion.
template <class S>
constexpr DType kOwnDType = sizeof(S) == sizeof(float) ? kFloat32 : kFloat64;

template <class S, class T, class Convert>
inline void gather(const T* source, int64_t stride, int64_t count, S* buffer, Convert convert) {
  if (stride == 1) {  // its own loop, so that the compiler can vectorise it
    for (int64_t i = 0; i < count; ++i) buffer[i] = convert(source[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = convert(source[i * stride]);
  }
}

// Bytes, which a mask has; a vector's build brings its own for floats, since compilers do this badly (isa_vec.h).
template <class S>
inline void cast_bytes(const uint8_t* source, int64_t count, S* buffer) {
  for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<S>(source[i]);
}

template <class S, class T>
inline void gather_as(const View& v, int64_t offset, int64_t count, S* buffer) {
  gather(static_cast<const T*>(v.data) + offset, v.col_stride, count, buffer, [](T x) { return static_cast<S>(x); });
}

template <class S>
inline void load_tokens(const View& v, int64_t offset, int64_t count, S* buffer) {
  const auto* bits = static_cast<const uint16_t*>(v.data);
  switch (v.dtype) {
    case kFloat32:
      return gather_as<S, float>(v, offset, count, buffer);
    case kFloat64:
      return gather_as<S, double>(v, offset, count, buffer);
    case kBFloat16:
      return gather(bits + offset, v.col_stride, count, buffer, [](uint16_t x) { return S(float_from_bfloat16(x)); });
    case kFloat16:
      return gather(bits + offset, v.col_stride, count, buffer, [](uint16_t x) { return S(float_from_float16(x)); });
    case kUInt8:
      if (v.col_stride == 1) return cast_bytes(static_cast<const uint8_t*>(v.data) + offset, count, buffer);
      return gather_as<S, uint8_t>(v, offset, count, buffer);
    case kInt8:
      return gather_as<S, int8_t>(v, offset, count, buffer);
    case kInt16:
      return gather_as<S, int16_t>(v, offset, count, buffer);
    case kInt32:
      return gather_as<S, int32_t>(v, offset, count, buffer);
    case kInt64:
      return gather_as<S, int64_t>(v, offset, count, buffer);
  }
}

// To `count` contiguous numbers of a floating dtype.
template <class S>
inline void store_tokens(void* data, DType dtype, int64_t offset, int64_t count, const S* buffer) {
  auto* bits = static_cast<uint16_t*>(data) + offset;
  if (dtype == kBFloat16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = bfloat16_from_float(static_cast<float>(buffer[i]));
  } else if (dtype == kFloat16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = float16_from_float(static_cast<float>(buffer[i]));
  } else {
    __builtin_memcpy(static_cast<S*>(data) + offset, buffer, count * sizeof(S));
  }
}

}  // namespace
}  // namespace maspo
