// Rows of logits: log-probability and entropy, and the gradient. Forward one block per row, which is read once; backward several.
#pragma once

#include "core/logit_rows.h"
#include "cuda/format.cuh"
#include "cuda/logit_sums.cuh"
#include "cuda/pack.cuh"

namespace maspo {

constexpr int kRowWarps = 8;
constexpr int kRowThreads = kRowWarps * kWarp;
// Blocks per multiprocessor that the compiler is to make room for: for float32 64 registers a thread forward, 80 backward;
// for float64 128. With these it spills nothing (tests/building checks both).
template <class S>
constexpr int kLogprobBlocks = sizeof(S) == sizeof(float) ? 4 : 2;
template <class S>
constexpr int kLogprobGradBlocks = sizeof(S) == sizeof(float) ? 3 : 2;

// A thread's step: so many packs of 16 bytes, all on their way before the first is used.
constexpr int kRowPacks = 4;

// Backward a row is cut into parts of so many steps, a block for each: no word waits for another there, and blocks that are
// done early leave their place to others. Where rows were whole, the last few would have the device to themselves.
constexpr int kPartSteps = 4;
template <class T>
constexpr int64_t kPartWords = int64_t{kPartSteps} * kRowPacks * kRowThreads * kPackWords<T>;
template <class T>
MASPO_HD int64_t parts_of_row(int64_t words) {
  return words <= kPartWords<T> ? 1 : 1 + (words - 1) / kPartWords<T>;
}

// What one launch makes: the threads that are done wait for those of the last block alone.
constexpr int kMaxGradBlocks = 8;
struct GradBlocks {
  GradBlock of[kMaxGradBlocks];
  unsigned parts_up_to[kMaxGradBlocks];  // of a row, in a block and those before it
  int count;
};

// Calls each(first, count, packs) for this thread's words of a row: packs[k], an array of one or of kRowPacks, has
// `count` words from first + k * kRowThreads * kPackWords on, and `missing` behind them. A row starts anywhere, so its
// full packs are those that lie on 16-byte boundaries, and at either end some words are left over.
template <class T, class Each>
__device__ __forceinline__ void for_each_pack(const T* row, int64_t words, T missing, Each& each) {
  constexpr int kWords = kPackWords<T>;
  constexpr int64_t kStride = int64_t{kRowThreads} * kWords;
  const int past_boundary = static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(T) % kWords);
  const int64_t head = bounded((kWords - past_boundary) % kWords, 0, words);
  const int64_t end = words - (words - head) % kWords;  // of the full packs
  int64_t first = head + static_cast<int64_t>(threadIdx.x) * kWords;
  for (; first + (kRowPacks - 1) * kStride < end; first += kRowPacks * kStride) {
    Pack<T, kWords> packs[kRowPacks];
#pragma unroll
    for (int k = 0; k < kRowPacks; ++k) packs[k] = load_pack<kWords>(row + first + k * kStride);
    each(first, kWords, packs);
  }
  for (; first < end; first += kStride) {
    const Pack<T, kWords> packs[1] = {load_pack<kWords>(row + first)};
    each(first, kWords, packs);
  }
  // One thread for each of the two ends.
  if (threadIdx.x >= 2) return;
  first = threadIdx.x == 0 ? 0 : end;
  const int count = static_cast<int>(threadIdx.x == 0 ? head : words - end);
  if (count == 0) return;
  Pack<T, kWords> packs[1];
#pragma unroll
  for (int i = 0; i < kWords; ++i) packs[0].value[i] = i < count ? row[first + i] : missing;
  each(first, count, packs);
}

// What a thread adds up forward.
template <class Format>
struct LogitAdder {
  using S = typename Format::Arithmetic;
  static constexpr int kWords = kPackWords<typename Format::Stored>;
  S inv_temperature;
  ThreadLogits<S> seen = {};

  // The maximum is raised once for all of the words. Each pack has sums of its own first, and then the step has: an
  // addition need not wait for the one before, and fewer numbers are added to what has grown large.
  template <int kPacks>
  __device__ __forceinline__ void operator()(int64_t, int,
                                             const Pack<typename Format::Stored, kWords> (&packs)[kPacks]) {
    S logit[kPacks][kWords], max[kPacks], highest = seen.sums.max;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      max[k] = seen.sums.max;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        logit[k][i] = Format::number(packs[k].value[i]);
        max[k] = at_least(max[k], logit[k][i]);
      }
      highest = at_least(highest, max[k]);
    }
    seen.raise(highest, inv_temperature);
    const auto of_pack = [&](const S (&words)[kWords]) {
      LogitSums<S> of_words = {highest, S(0), S(0)};
#pragma unroll
      for (int i = 0; i < kWords; ++i) add_logit(of_words, words[i], inv_temperature);
      return of_words;
    };
    LogitSums<S> of_step = of_pack(logit[0]);
#pragma unroll
    for (int k = 1; k < kPacks; ++k) {
      const LogitSums<S> next = of_pack(logit[k]);
      of_step.sum += next.sum;
      of_step.weighted += next.weighted;
    }
    seen.add(of_step);
  }
};

// What a thread writes backward.
template <class Format, class GradFormat>
struct GradWriter {
  using S = typename Format::Arithmetic;
  using G = typename GradFormat::Stored;
  static constexpr int kWords = kPackWords<typename Format::Stored>;
  RowGradient<S> g;
  int64_t target;  // the word, or one that is not among these
  G* grad;

  template <int kPacks>
  __device__ __forceinline__ void operator()(int64_t first, int count,
                                             const Pack<typename Format::Stored, kWords> (&packs)[kPacks]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      S dlogit[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        dlogit[i] = dlogit_of(Format::number(packs[k].value[i]), g);
      }
      if (target >= first && target < first + kWords) {
        const int position = static_cast<int>(target - first);
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          if (i == position) dlogit[i] += dtarget_of(g);
        }
      }
      G rounded[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) rounded[i] = GradFormat::rounded(dlogit[i]);
      store_pack(grad + first, count, rounded);
      first += int64_t{kRowThreads} * kWords;
    }
  }
};

template <class Format>
__global__ void __launch_bounds__(kRowThreads, kLogprobBlocks<typename Format::Arithmetic>)
    logprob_kernel(LogprobParams p) {
  using S = typename Format::Arithmetic;
  using T = typename Format::Stored;
  MASPO_SHARED(double, scratch, kRowWarps);
  const int64_t row = blockIdx.x;
  const int64_t index = p.target.index[row];
  const TargetKind kind = target_kind(p.target, p.logits.words, index);
  if (kind == kTargetIgnored) {
    if (threadIdx.x == 0) write_ignored_row<S>(p, row);
    return;
  }
  const T* words = static_cast<const T*>(p.logits.data) + row_offset(p.logits, row);
  // Asked for before the row, so that nothing waits for it behind the row.
  const T target = kind == kTargetHere ? words[index - p.target.first_word] : T(0);
  const T banned = Format::rounded(-static_cast<S>(Limits<double>::infinity()));
  LogitAdder<Format> adder = {static_cast<S>(p.inv_temperature)};
  for_each_pack(words, p.logits.words, banned, adder);
  const LogitSums<double> total = block_logits<kRowWarps>(adder.seen, p.inv_temperature, scratch);
  if (threadIdx.x == 0) write_row<S>(p, row, kind, total, static_cast<double>(Format::number(target)));
}

// The gradient may be the logits' own memory: a thread reads its words before it writes them, and no other thread does.
template <class Format, class GradFormat>
__global__ void __launch_bounds__(kRowThreads, kLogprobGradBlocks<typename Format::Arithmetic>)
    logprob_grad_kernel(LogprobGradParams p, GradBlocks blocks) {
  using S = typename Format::Arithmetic;
  using T = typename Format::Stored;
  using G = typename GradFormat::Stored;
  constexpr int kWords = kPackWords<T>;
  constexpr int64_t nowhere = -1;
  const unsigned parts = blocks.parts_up_to[blocks.count - 1];
  const int64_t row = blockIdx.x / parts;
  unsigned part = blockIdx.x % parts;
  int which = 0;
  while (part >= blocks.parts_up_to[which]) ++which;
  if (which > 0) part -= blocks.parts_up_to[which - 1];
  const GradBlock& block = blocks.of[which];
  const int64_t begin = part * kPartWords<T>, words = bounded(block.words - begin, 0, kPartWords<T>);
  const int64_t index = p.target.index[row];
  const TargetKind kind = target_kind(p.target, p.logits.words, index);
  G* grad = static_cast<G*>(block.data) + grad_offset(p.logits, block, row) + begin;
  if (kind == kTargetIgnored) {
    for (int64_t first = static_cast<int64_t>(threadIdx.x) * kWords; first < words; first += int64_t{kRowThreads} * kWords) {
      const G zeros[kWords] = {};
      store_pack(grad + first, static_cast<int>(bounded(words - first, 0, kWords)), zeros);
    }
    return;
  }
  const int64_t first = block.first + begin;
  const int64_t target = kind == kTargetHere ? index - p.target.first_word - first : nowhere;
  const T* logits = static_cast<const T*>(p.logits.data) + row_offset(p.logits, row) + first;
  const GradWriter<Format, GradFormat> writer = {row_gradient<S>(p, row, kind), target, grad};
  for_each_pack(logits, words, T(0), writer);
}

}  // namespace maspo
