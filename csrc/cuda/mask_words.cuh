// The mask of a lane's step as it lies in memory: whether all of its tokens count, or none, is a comparison of bits.
#pragma once

#include "cuda/load.cuh"

namespace maspo {

// For masks of 1, 4 or 8 bytes a token, side by side.
MASPO_HD bool is_of_words(const View& mask) { return mask.col_stride == 1 && size_of(mask.dtype) != 2; }

// The words of four tokens, of which a mask of bytes has one. Two of the eight are a token of 8 bytes; of 4 bytes a token,
// the second four are the first again. As they are: tokens that exist none of.
struct MaskWords {
  uint4 low = {}, high = {};
};

class MaskReader {
 public:
  // `offset`: of column 0, as fetch counts them.
  __device__ __forceinline__ MaskReader(const View& mask, int64_t offset)
      : size_(static_cast<int>(size_of(mask.dtype))),
        first_(static_cast<const unsigned char*>(mask.data) + offset * size_),
        aligned_(reinterpret_cast<uintptr_t>(first_) % (size_ == 1 ? sizeof(unsigned) : sizeof(uint4)) == 0),
        even_(size_ == 1 ? 0x01010101u : mask.dtype == kFloat32 ? 0x3f800000u : mask.dtype == kFloat64 ? 0u : 1u),
        odd_(mask.dtype == kFloat64 ? 0x3ff00000u : size_ == 8 ? 0u : even_) {}

  // Of columns col to col + 3.
  __device__ __forceinline__ MaskWords fetch(int col) const {
    const unsigned char* at = first_ + col * size_;
    MaskWords m;
    if (size_ == 1) {
      m.low.x = aligned_ ? *reinterpret_cast<const unsigned*>(at)
                         : at[0] | at[1] << 8 | at[2] << 16 | static_cast<unsigned>(at[3]) << 24;
      return m;
    }
    fetch_four(at, m.low);
    m.high = m.low;
    if (size_ == 8) fetch_four(at + sizeof(uint4), m.high);
    return m;
  }

  __device__ __forceinline__ bool all_ones(const MaskWords& m) const {
    if (size_ == 1) return m.low.x == even_;
    return ((m.low.x ^ even_) | (m.low.y ^ odd_) | (m.low.z ^ even_) | (m.low.w ^ odd_) | (m.high.x ^ even_) |
            (m.high.y ^ odd_) | (m.high.z ^ even_) | (m.high.w ^ odd_)) == 0;
  }

  __device__ __forceinline__ bool all_zeros(const MaskWords& m) const {
    return (m.low.x | m.low.y | m.low.z | m.low.w | m.high.x | m.high.y | m.high.z | m.high.w) == 0;
  }

 private:
  __device__ __forceinline__ void fetch_four(const unsigned char* at, uint4& words) const {
    const auto* const each = reinterpret_cast<const unsigned*>(at);
    if (__builtin_expect(aligned_, 1)) {
      words = *reinterpret_cast<const uint4*>(at);
    } else {
      words.x = each[0];
      words.y = each[1];
      words.z = each[2];
      words.w = each[3];
    }
  }

  int size_;
  const unsigned char* first_;
  bool aligned_;
  unsigned even_, odd_;
};

}  // namespace maspo
