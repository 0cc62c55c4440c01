// How the CUDA kernels cut a batch.
#pragma once

#include "core/params.h"

namespace maspo {

// One warp works on one piece, kWarpsPerBlock warps on one unit.
constexpr int kWarpsPerBlock = 4;

// Pieces are small enough to give every multiprocessor work, but no more than kManyPieces if that can be: the block that
// comes last reads what each of them has left. A lane adds at most kMaxPieceTokens / 32 numbers up in float32.
constexpr int64_t kMinPieceTokens = 128;
constexpr int64_t kMaxPieceTokens = 4096;
constexpr int64_t kManyPieces = 8192;

MASPO_HD Tiling cuda_tiling(int64_t rows, int64_t cols) {
  int64_t tokens = kMinPieceTokens;
  while (tokens < kMaxPieceTokens && tokens < cols && rows * ceil_div(cols, tokens) > kManyPieces) tokens *= 2;
  const int64_t pieces = cols > tokens ? ceil_div(cols, tokens) : 1;
  return {tokens, pieces, ceil_div(rows * pieces, kWarpsPerBlock)};
}

}  // namespace maspo
