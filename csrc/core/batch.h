// Where the tokens of a batch lie, and how an engine cuts it.
#pragma once

#include "core/portable.h"

namespace maspo {

enum DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64 };

MASPO_HD int64_t size_of(DType dtype) {
  switch (dtype) {
    case kUInt8:
    case kInt8:
      return 1;
    case kBFloat16:
    case kFloat16:
    case kInt16:
      return 2;
    case kFloat32:
    case kInt32:
      return 4;
    default:
      return 8;
  }
}

// `rows` sequences: padded, each of width `cols`, or packed end to end into `tokens` tokens, sequence b at
// [cu_seqlens[b], cu_seqlens[b + 1]), none longer than `cols`.
struct Batch {
  int64_t rows, cols;
  const int64_t* cu_seqlens;  // [rows + 1], in the engine's memory; null: padded
  int64_t tokens;             // rows * cols, or the length of the packed tensors
};

// An input of any dtype and strides (in elements). Padded: [B, T]. Packed: a tensor per token has row_stride 0. One value
// per sequence has col_stride 0.
struct View {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
  DType dtype;
};

// How a CPU cuts the batch: into pieces of at most `piece_tokens` tokens of one row, and into units that are worked on
// independently. By rows and cols alone, but for pieces that would be empty in every row, so that the order of all additions, and
// every bit of the result, is the same from run to run, for any number of threads, and packed or padded.
struct Tiling {
  int64_t piece_tokens;
  int64_t pieces_per_row;  // at least 1, so that a row of width 0 has its (empty) sums
  int64_t units;
};

MASPO_HD int64_t piece_count(const Batch& b, const Tiling& t) { return b.rows * t.pieces_per_row; }

// What a piece adds to its row.
struct alignas(16) RowSums {  // one access of a GPU
  double tokens;
  double loss;
};

MASPO_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A row's tokens, or a piece's: columns [first, last) of `row`. Column c is token start + c of a packed tensor and of the
// gradient, which is contiguous.
struct Span {
  int64_t row, first, last;
  int64_t start;
};

MASPO_HD int64_t bounded(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Whatever cu_seqlens holds, a span stays within the tokens: on a GPU it cannot be looked at before.
MASPO_HD Span row_span(const Batch& b, int64_t row) {
  if (b.cu_seqlens == nullptr) return {row, 0, b.cols, row * b.cols};
  const int64_t start = bounded(b.cu_seqlens[row], 0, b.tokens);
  const int64_t end = bounded(b.cu_seqlens[row + 1], start, b.tokens);
  return {row, 0, bounded(end - start, 0, b.cols), start};
}

MASPO_HD Span piece_span(const Batch& b, const Tiling& t, int64_t row, int64_t piece) {
  Span span = row_span(b, row);
  const int64_t width = span.last;
  span.first = bounded(piece * t.piece_tokens, 0, width);
  span.last = bounded((piece + 1) * t.piece_tokens, 0, width);
  return span;
}

// Whether sequence `row` of packed tensors follows the one before, is no longer than cols, and is the last one to its end.
MASPO_HD bool is_sound_row(const Batch& b, int64_t row) {
  const int64_t start = b.cu_seqlens[row], end = b.cu_seqlens[row + 1];
  return (row > 0 || start == 0) && start <= end && end - start <= b.cols && (row + 1 < b.rows || end == b.tokens);
}

MASPO_HD int64_t offset_of(const View& v, const Batch& b, const Span& span, int64_t col) {
  return span.row * v.row_stride + (b.cu_seqlens == nullptr ? col : span.start + col) * v.col_stride;
}

}  // namespace maspo
