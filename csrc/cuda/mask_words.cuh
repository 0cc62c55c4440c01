// The mask of a warp's steps as it lies in memory: whether all of a step's tokens count, or none, is a comparison of bits.
//
// A kind of mask is fetched for kSteps steps at a time, as Words. What these say are Flags: of the first step ones() and
// zeros(), of the others those of next().
#pragma once

#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace maspo {

// Masks of 1 byte a token, side by side. Those of four steps are fetched at a time, 16 tokens a lane: one access for four.
class ByteMask {
 public:
  static constexpr int kSteps = 4;
  using Words = uint4;
  // Eight lanes' bits for each step: whether all of a lane's tokens count, whether none does.
  struct Flags {
    unsigned all, none;
    __device__ __forceinline__ bool ones() const { return (all & 0xffu) == 0xffu; }
    __device__ __forceinline__ bool zeros() const { return (none & 0xffu) == 0xffu; }
    __device__ __forceinline__ Flags next() const { return {all >> 8, none >> 8}; }
  };
  MASPO_HD bool fits(const View& mask) { return mask.col_stride == 1 && size_of(mask.dtype) == 1; }

  // `offset`: of the step's first token.
  __device__ __forceinline__ ByteMask(const View& mask, int64_t offset)
      : first_(static_cast<const unsigned char*>(mask.data) + offset + threadIdx.x % kWarp * sizeof(Words)),
        aligned_(is_aligned<sizeof(Words)>(first_)) {}

  // Of the steps from column col on, which all exist, aligned.
  __device__ __forceinline__ Words fetch_whole(int64_t col) const { return *reinterpret_cast<const Words*>(first_ + col); }

  // Of the steps from column col on; `left` tokens exist from there on. Where not all of a lane's do: as neither.
  __device__ __forceinline__ Words fetch(int col, int left) const {
    const int of_lane = left - static_cast<int>(threadIdx.x % kWarp * sizeof(Words));
    if (of_lane <= 0) return {0, 0, 0, 0};
    if (of_lane < static_cast<int>(sizeof(Words))) return {1, 0, 0, 0};
    const unsigned char* const at = first_ + col;
    if (__builtin_expect(aligned_, 1)) return *reinterpret_cast<const Words*>(at);
    return {word(at), word(at + 4), word(at + 8), word(at + 12)};
  }

  __device__ __forceinline__ Flags after(const Words& w) const {
    constexpr unsigned kOnes = 0x01010101u;
    const unsigned beside = (w.x ^ kOnes) | (w.y ^ kOnes) | (w.z ^ kOnes) | (w.w ^ kOnes);
    return {__ballot_sync(kAllLanes, beside == 0), __ballot_sync(kAllLanes, (w.x | w.y | w.z | w.w) == 0)};
  }

 private:
  __device__ __forceinline__ static unsigned word(const unsigned char* at) {
    return at[0] | at[1] << 8 | at[2] << 16 | static_cast<unsigned>(at[3]) << 24;
  }

  const unsigned char* first_;
  bool aligned_;
};

// Masks of 4 or 8 bytes a token, side by side.
template <int kSize>
class WideMask {
 public:
  static constexpr int kSteps = 1;
  static constexpr int kPacks = kSize * kLane / sizeof(uint4);
  struct Words {
    uint4 pack[kPacks];
  };
  struct Flags {
    bool all, none;  // of the warp's tokens, of this lane's
    __device__ __forceinline__ bool ones() const { return all; }
    __device__ __forceinline__ bool zeros() const { return none; }
    __device__ __forceinline__ Flags next() const { return *this; }  // there is none
  };
  MASPO_HD bool fits(const View& mask) { return mask.col_stride == 1 && size_of(mask.dtype) == kSize; }

  __device__ __forceinline__ WideMask(const View& mask, int64_t offset)
      : first_(static_cast<const unsigned char*>(mask.data) + (offset + threadIdx.x % kWarp * kLane) * kSize),
        aligned_(is_aligned<sizeof(uint4)>(first_)),
        is_float_(mask.dtype == kFloat32 || mask.dtype == kFloat64) {}

  __device__ __forceinline__ Words fetch(int col, int left) const {
    const auto* const at = reinterpret_cast<const unsigned*>(first_ + static_cast<int64_t>(col) * kSize);
    Words words = {};
    if (left - static_cast<int>(threadIdx.x % kWarp * kLane) < kLane) return words;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const unsigned* const each = at + i * 4;
      words.pack[i] = aligned_ ? *reinterpret_cast<const uint4*>(each) : uint4{each[0], each[1], each[2], each[3]};
    }
    return words;
  }

  __device__ __forceinline__ Flags after(const Words& words) const {
    const unsigned even = kSize == 4 && is_float_ ? 0x3f800000u : is_float_ ? 0u : 1u;
    const unsigned odd = kSize == 4 ? even : is_float_ ? 0x3ff00000u : 0u;
    return {__all_sync(kAllLanes, bits_beside(words, even, odd) == 0) != 0, bits_beside(words, 0, 0) == 0};
  }

 private:
  // Those that differ from a one, of which these are the words.
  __device__ __forceinline__ static unsigned bits_beside(const Words& words, unsigned even, unsigned odd) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const uint4& four = words.pack[i];
      bits |= (four.x ^ even) | (four.y ^ odd) | (four.z ^ even) | (four.w ^ odd);
    }
    return bits;
  }

  const unsigned char* first_;
  bool aligned_, is_float_;
};

}  // namespace maspo
