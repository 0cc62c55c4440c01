// The tokens of a unit's pieces: with these every row's scale is known before the pass that writes gradients.
#pragma once

#include <type_traits>

#include "cpu/stage.h"

namespace maspo {
namespace {

template <class T>
double sum_of_integers(const View& v, int64_t offset, int count) {
  const T* values = static_cast<const T*>(v.data) + offset;
  // Those of a run that are one byte or two do not leave 32 bits, of which a register holds more.
  std::conditional_t<sizeof(T) <= 2, int32_t, int64_t> sum = 0;
  if (v.col_stride == 1) {  // its own loop, so that the compiler can vectorise it
    for (int i = 0; i < count; ++i) sum += values[i];
  } else {
    for (int i = 0; i < count; ++i) sum += values[i * v.col_stride];
  }
  return static_cast<double>(sum);
}

template <class V>
double sum_of_floats(Staged<scalar_t<V>>& mask, const View& v, const Batch& batch, const Span& span, int64_t col,
                     int count) {
  mask.stage(v, batch, span, col, count, padded_to_lanes<V>(count));
  V sum = V(scalar_t<V>(0));
  for (int i = 0; i < count; i += Lanes<V>::count) sum += Lanes<V>::load(mask.values + i);
  return sum_over_lanes(sum);
}

template <class V>
void count_unit(const LossParams& p, int64_t unit) {
  const View& v = p.response_mask;
  Staged<scalar_t<V>> mask;
  double tokens;
  const auto sum_of_run = [&](const Span& span, int64_t col, int count) {
    const int64_t offset = offset_of(v, p.batch, span, col);
    switch (v.dtype) {
      case kUInt8:
        return sum_of_integers<uint8_t>(v, offset, count);
      case kInt8:
        return sum_of_integers<int8_t>(v, offset, count);
      case kInt16:
        return sum_of_integers<int16_t>(v, offset, count);
      case kInt32:
        return sum_of_integers<int32_t>(v, offset, count);
      case kInt64:
        return sum_of_integers<int64_t>(v, offset, count);
      default:
        return sum_of_floats<V>(mask, v, p.batch, span, col, count);
    }
  };
  for_each_run(
      p.batch, p.tiling, unit, [&](const Span&) { tokens = 0; },
      [&](const Span& span, int64_t col, int count) { tokens += sum_of_run(span, col, count); },
      [&](int64_t piece) { p.pieces[piece].tokens = tokens; });
}

}  // namespace
}  // namespace maspo
