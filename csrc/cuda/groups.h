// How the forward pass cuts a large batch that is stored row after row: a stretch for each block, whose warps take groups of
// steps in turn. So what a block reads at a time lies together, which the memory serves faster than a place for each warp.
#pragma once

#include "cuda/tiling.h"

namespace maspo {

constexpr int64_t kGroupSteps = 4;
constexpr int64_t kGroupTokens = kGroupSteps * kStepTokens;
// With fewer groups a warp nothing is gained, and some have one more than others.
constexpr int64_t kLeastGroups = 16;

// A group is a piece, and group g is piece g.
struct GroupCut {
  int64_t of_row, of_block;  // groups
  int64_t warps, blocks;
};

MASPO_HD GroupCut group_cut(const Batch& b, const Grid& grid) {
  const int64_t of_row = b.cols / kGroupTokens, of_block = ceil_div(b.rows * of_row, grid.blocks);
  return {of_row, of_block, grid.warps, ceil_div(b.rows * of_row, of_block)};
}

// Whether there is such a cut, of rows of whole groups.
MASPO_HD bool has_groups(const Batch& b, const Grid& grid) {
  // First, since there has to be something to cut, and a max_seqlen may be of any size.
  if (b.cu_seqlens != nullptr || b.tokens == 0 || b.cols % kGroupTokens != 0) return false;
  const GroupCut cut = group_cut(b, grid);
  // A row longer than a block's stretch would be split by several, and be looked for at the end of each.
  return cut.of_block >= cut.of_row && cut.of_block >= cut.warps * kLeastGroups;
}

// From a warp's group to its next one, of which this sets the place among those of a round of the block's warps: it goes up by
// one. Rows are padded behind, and a place that is the same in every row would be much work for one warp and none for another.
MASPO_HD int64_t tokens_to_next_group(const GroupCut& cut, int& place) {
  place += 1;
  if (place < cut.warps) return (cut.warps + 1) * kGroupTokens;
  place = 0;
  return kGroupTokens;
}

MASPO_HD int64_t piece_count(const Batch& b, const GroupCut& cut) { return b.rows * cut.of_row; }
MASPO_HD Pieces pieces_of_row(const GroupCut& cut, int64_t row) { return {row * cut.of_row, cut.of_row}; }

// Those that a block has as a whole; none where a row is one group.
MASPO_HD SplitRows split_rows_of_block(const Batch& b, const GroupCut& cut, int64_t block) {
  const int64_t begin = block * cut.of_block, first = ceil_div(begin, cut.of_row);
  const int64_t last = bounded((begin + cut.of_block) / cut.of_row, first, b.rows);
  return {cut.of_row > 1 ? last - first : 0, true, first, 0};
}

// Those that two blocks have a part of.
MASPO_HD SplitRows split_rows_of_grid(const Batch&, const GroupCut& cut) { return {cut.blocks - 1, false, 0, cut.of_block}; }

MASPO_HD int64_t split_row(const Batch& b, const GroupCut& cut, const SplitRows& split, int64_t candidate) {
  if (candidate >= split.candidates) return -1;
  if (split.among_rows) return split.first + candidate;
  return row_split_at(b, (candidate + 1) * split.length, cut.of_row);
}

// As many pieces as the forward pass has at most, however it is cut.
MASPO_HD int64_t most_pieces(const Batch& b, const Grid& grid) {
  const int64_t of_stretches = piece_count(b, cuda_cut(b, grid));
  return has_groups(b, grid) ? bounded(piece_count(b, group_cut(b, grid)), of_stretches, kStepsOfAll) : of_stretches;
}

}  // namespace maspo
