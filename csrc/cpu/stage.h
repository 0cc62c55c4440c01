// How the CPU engine walks over a unit: rows, then runs of tokens that are staged into the L1 cache.
#pragma once

#include "cpu/engine.h"
#include "cpu/load.h"
#include "cpu/vec.h"

namespace maspo {
namespace {

// Tokens staged at a time: the buffers of it stay in the L1 cache, and a float sum over it loses no digits that matter
// before it is added to a double.
constexpr int kRun = 512;

template <class V>
inline int padded_to_lanes(int count) {
  constexpr int lanes = Lanes<V>::count;
  return (count + lanes - 1) / lanes * lanes;
}

template <class V>
inline double sum_over_lanes(V v) {
  scalar_t<V> lane[Lanes<V>::count];
  Lanes<V>::store(lane, v);
  double total = 0.0;
  for (int i = 0; i < Lanes<V>::count; ++i) total += lane[i];
  return total;
}

// The bits of one number, of up to 8 bytes, on a little-endian machine, as all are that this is compiled for.
inline uint64_t bits_of(const void* number, int64_t size) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, number, size);
  return bits;
}

// Whether all numbers have the bits of the first. No search for one that has not, since compilers make registers of this and
// not of that.
template <class Bits>
inline bool all_as_first(const void* memory, int64_t count) {
  const auto* p = static_cast<const unsigned char*>(memory);
  const Bits first = static_cast<Bits>(bits_of(memory, sizeof(Bits)));
  Bits different = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    __builtin_memcpy(&bits, p + i * sizeof(Bits), sizeof(Bits));
    different |= bits ^ first;
  }
  return different == 0;
}

// The same of numbers of this many bytes each.
inline bool all_same(const void* memory, int64_t size, int64_t count) {
  if (size == 1) return all_as_first<uint8_t>(memory, count);
  if (size == 2) return all_as_first<uint16_t>(memory, count);
  if (size == 4) return all_as_first<uint32_t>(memory, count);
  return all_as_first<uint64_t>(memory, count);
}

inline uint64_t bits_of_one(DType dtype) {
  constexpr uint64_t bits[] = {0x3f800000, 0x3ff0000000000000, 0x3f80, 0x3c00, 1, 1, 1, 1, 1};
  return bits[dtype];
}

// The inputs of a run. Where there is no tensor, the pointer stays at the buffer, which nobody reads.
template <class S>
struct alignas(64) Staged {
  S buffer[kRun];
  const S* values = buffer;

  // In place where dtype and stride allow and the run is full, else through the buffer, which then has zeros from `count`
  // to `padded`.
  void stage(const View& v, const Batch& batch, const Span& span, int64_t col, int count, int padded = 0) {
    if (v.data == nullptr) return;
    const int64_t offset = offset_of(v, batch, span, col);
    if (v.dtype == kOwnDType<S> && v.col_stride == 1 && count == kRun) {
      values = static_cast<const S*>(v.data) + offset;
    } else {
      load_tokens(v, offset, count, buffer);
      values = buffer;
      for (int i = count; i < padded; ++i) buffer[i] = S(0);
    }
  }
};

enum RunMask { kNothingCounts, kSomeCount, kAllCountOnce };

// What the mask says of a run, in its own dtype; kSomeCount where that is not to be seen at once.
inline RunMask mask_of_run(const View& v, const Batch& batch, const Span& span, int64_t col, int count) {
  const int64_t size = size_of(v.dtype);
  const auto* source = static_cast<const unsigned char*>(v.data) + offset_of(v, batch, span, col) * size;
  if (v.col_stride != 1 || !all_same(source, size, count)) return kSomeCount;
  const uint64_t bits = bits_of(source, size);
  return bits == 0 ? kNothingCounts : bits == bits_of_one(v.dtype) ? kAllCountOnce : kSomeCount;
}

template <class V>
struct Run {
  using S = scalar_t<V>;
  Staged<S> mask, log_prob, old_log_prob, advantage, is_weight, entropy, ref_log_prob;

  // With zeros behind its end.
  void stage_mask(const View& v, const Batch& batch, const Span& span, int64_t col, int count) {
    mask.stage(v, batch, span, col, count, padded_to_lanes<V>(count));
  }
};

// For every row of the unit: begin(span), run(span, col, count) for every run of tokens, end(piece).
template <class Begin, class OfRun, class End>
inline void for_each_run(const Batch& batch, const Tiling& tiling, int64_t unit, Begin begin, OfRun run, End end) {
  const int64_t pieces = tiling.pieces_per_row, rows = rows_per_unit(batch.cols);
  const int64_t first_row = unit / pieces * rows, piece = unit % pieces;
  const int64_t last_row = first_row + rows < batch.rows ? first_row + rows : batch.rows;
  for (int64_t row = first_row; row < last_row; ++row) {
    const Span span = piece_span(batch, tiling, row, piece);
    begin(span);
    for (int64_t col = span.first; col < span.last; col += kRun) {
      run(span, col, static_cast<int>(span.last - col < kRun ? span.last - col : kRun));
    }
    end(row * pieces + piece);
  }
}

}  // namespace
}  // namespace maspo
