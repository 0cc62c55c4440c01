// How the CUDA kernels cut a batch. Rows are made of steps, of kLane tokens for each lane of a warp, and all steps, row after
// row, are cut into stretches of one length, one for each warp. A piece is what of a row lies in a stretch, so that a warp
// has as many tokens as any other, whatever the rows' length.
#pragma once

#include "core/params.h"

namespace maspo {

constexpr int kWarp = 32;
constexpr int kLane = 4;
constexpr int64_t kStepTokens = kWarp * kLane;
// After so many steps a lane's sums, in float32 for most batches, go into a double.
constexpr int64_t kMaxSteps = 32;

// No memory has tokens for more steps, but a caller's max_seqlen may be of any size: with this bound nothing overflows.
constexpr int64_t kStepsOfAll = int64_t{1} << 55;

// Blocks that a device runs at a time, and warps that a block has at most.
struct Grid {
  int64_t blocks, warps;
};
constexpr int64_t kLeastWarps = 4;
constexpr int64_t kMaxBlocks = 2147483647;  // grid.x

// In the passes over a batch a multiprocessor has one block: few and large ones leave little for the last one to read. With
// so many warps, float32 has 128 registers a thread and float64 255, and nothing is spilled; left to itself the compiler takes
// fewer and does (tests/building checks both).
template <class S>
constexpr int kMostWarps = sizeof(S) == sizeof(float) ? 16 : 8;
template <class S>
constexpr int kMostThreads = kMostWarps<S> * kWarp;

struct Cut {
  int64_t steps_of_row, steps_of_warp;  // at least 1 each
  int64_t warps, blocks;                // of a block; a batch without rows has a block, too, which writes loss and statistics
};

MASPO_HD Cut cuda_cut(const Batch& b, const Grid& grid) {
  Cut cut = {};
  const int64_t most = kStepsOfAll / (b.rows > 0 ? b.rows : 1);
  cut.steps_of_row = bounded(b.cols / kStepTokens + (b.cols % kStepTokens != 0), 1, most);
  const int64_t steps = b.rows * cut.steps_of_row;
  cut.warps = bounded(ceil_div(steps, grid.blocks), kLeastWarps, grid.warps);
  cut.steps_of_warp = steps > 0 ? ceil_div(steps, grid.blocks * cut.warps) : 1;
  cut.blocks = bounded(ceil_div(ceil_div(steps, cut.steps_of_warp), cut.warps), 1, grid.blocks);
  return cut;
}

// Piece row + warp is what warp `warp` has of row `row`: whoever goes on to the next piece goes on to the next row or the
// next warp.
MASPO_HD int64_t piece_count(const Batch& b, const Cut& cut) { return b.rows + cut.blocks * cut.warps; }

// The pieces of a row: `count` from `first` on.
struct Pieces {
  int64_t first, count;
};

MASPO_HD Pieces pieces_of_row(const Cut& cut, int64_t row) {
  const int64_t begin = row * cut.steps_of_row, last = begin + cut.steps_of_row - 1;
  const int64_t warp = begin / cut.steps_of_warp;
  return {row + warp, last / cut.steps_of_warp - warp + 1};
}

// Where rows that several warps have pieces of are looked for: among all rows or, where warps are fewer, at the places where
// a stretch ends, of a warp or of a block. Then a stretch is no shorter than a row, and no row lies in more than two.
struct SplitRows {
  int64_t candidates;
  bool among_rows;
  int64_t first, length;  // the first of the rows or stretches, and how long each of the latter is
};

MASPO_HD int64_t warps_with_steps(const Batch& b, const Cut& cut) {
  return ceil_div(b.rows * cut.steps_of_row, cut.steps_of_warp);
}

// Those that a block has as a whole; none where the search is among all rows.
MASPO_HD SplitRows split_rows_of_block(const Batch& b, const Cut& cut, int64_t block) {
  return {b.rows < warps_with_steps(b, cut) ? 0 : cut.warps - 1, false, block * cut.warps, cut.steps_of_warp};
}

// All others.
MASPO_HD SplitRows split_rows_of_grid(const Batch& b, const Cut& cut) {
  if (b.rows < warps_with_steps(b, cut)) return {b.rows, true, 0, 0};
  return {cut.blocks - 1, false, 0, cut.warps * cut.steps_of_warp};
}

// The row that two stretches have a part of, of which one ends there, or -1.
MASPO_HD int64_t row_split_at(const Batch& b, int64_t end, int64_t length_of_row) {
  const int64_t row = end / length_of_row;
  return row < b.rows && row * length_of_row < end ? row : -1;
}

// A candidate's row, or -1: there is none, or it is in one piece.
MASPO_HD int64_t split_row(const Batch& b, const Cut& cut, const SplitRows& split, int64_t candidate) {
  if (candidate >= split.candidates) return -1;
  if (split.among_rows) return pieces_of_row(cut, candidate).count > 1 ? candidate : -1;
  return row_split_at(b, (split.first + candidate + 1) * split.length, cut.steps_of_row);
}

// What a block leaves for the last one: the numbers of StatSums in their order, and those of its whole rows.
enum UnitNumber {
  kLeast = kNumSums + kMaxMethodSums,  // ratio_min
  kMost,                               // ratio_max
  kNonempty,                           // rows with tokens
  kUnsound,                            // rows that cu_seqlens has wrong
  kRowLoss,                            // the rows' losses, divided by their tokens where the mode is kSeqMeanTokenMean
  kUnitNumbers
};
static_assert(sizeof(StatSums<double>) == kNonempty * sizeof(double), "as StatSums has them");

// Calls each(piece, span, is_whole_row) for those of a warp.
template <class Each>
MASPO_HD void for_each_piece(const Batch& b, const Cut& cut, int64_t warp, Each each) {
  const int64_t begin = warp * cut.steps_of_warp, steps = b.rows * cut.steps_of_row;
  int64_t left = bounded(steps - begin, 0, cut.steps_of_warp);
  if (left == 0) return;
  int64_t row = begin / cut.steps_of_row, in_row = begin - row * cut.steps_of_row;
  while (left > 0) {
    const int64_t count = bounded(cut.steps_of_row - in_row, 0, left);
    Span span = row_span(b, row);
    const int64_t width = span.last;
    span.first = bounded(in_row * kStepTokens, 0, width);
    span.last = bounded((in_row + count) * kStepTokens, 0, width);
    each(row + warp, span, count == cut.steps_of_row);
    left -= count;
    row += 1;
    in_row = 0;
  }
}

}  // namespace maspo
