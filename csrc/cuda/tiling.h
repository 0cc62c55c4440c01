// How the CUDA kernels cut a batch: one warp works on a piece at a time, the warps of a block side by side.
#pragma once

#include "core/params.h"

namespace maspo {

constexpr int kWarp = 32;

// Warps of a block, and blocks of a multiprocessor for which the compiler is to make room, in the passes over a batch: few
// and large blocks leave little for the last one to read. With these float32 has 96 registers a thread and float64 255, and
// nothing is spilled; left to itself the compiler takes fewer and does (tests/building checks both).
#ifndef MASPO_W
#define MASPO_W 20
#define MASPO_B 1
#endif
template <class S>
constexpr int kWarps = sizeof(S) == sizeof(float) ? MASPO_W : 8;
template <class S>
constexpr int kBlocks = sizeof(S) == sizeof(float) ? MASPO_B : 1;
template <class S>
constexpr int kThreads = kWarps<S> * kWarp;

constexpr int kLane = 4;  // tokens of a lane's step
constexpr int64_t kStepTokens = kWarp * kLane;
// Of a piece. So a lane adds at most 128 numbers up in float32 before they go into a double.
constexpr int64_t kMaxSteps = 32;

// What a device runs at a time.
struct Grid {
  int64_t blocks, warps;  // of a block
};

template <class S>
MASPO_HD Grid grid_of(int64_t multiprocessors) {
  return {multiprocessors * kBlocks<S>, kWarps<S>};
}

// The cut that gives the warp with the most work the least of it; of those that do, the one with the fewest pieces. A unit is
// what a block does, and there are no more of them than the device runs at a time: the last one has to read what each of
// them has left.
MASPO_HD Tiling cuda_tiling(int64_t rows, int64_t cols, const Grid& grid) {
  const int64_t steps = cols > kStepTokens ? ceil_div(cols, kStepTokens) : 1;
  Tiling best = {};
  int64_t least = 0;
  for (int64_t of_piece = kMaxSteps; of_piece > 0; of_piece /= 2) {
    const int64_t pieces = ceil_div(steps, of_piece), units = ceil_div(rows * pieces, grid.warps);
    const int64_t work = ceil_div(units, grid.blocks) * (of_piece < steps ? of_piece : steps);
    if (best.units != 0 && work >= least) continue;
    least = work;
    // A batch without rows has a block, too: it writes loss and statistics.
    best = {of_piece * kStepTokens, pieces, bounded(units, 1, grid.blocks)};
  }
  return best;
}

}  // namespace maspo
