// Memory, dtypes and errors, as every run of an engine here has them.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/batch.h"

namespace emulation {

using namespace maspo;

// Memory of exactly its size, so that a sanitizer sees the first byte beyond it; NaN until it is written.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes), data_(new unsigned char[bytes]) {
    std::memset(data_.get(), 0xff, bytes);
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<unsigned char[]> data_;
};

inline void check(int error) {
  if (error != 0) throw std::runtime_error("launch failed with error " + std::to_string(error));
}

template <class S>
std::vector<double> numbers(const Memory& memory) {
  const S* data = memory.as<S>();
  return {data, data + memory.bytes() / sizeof(S)};
}

}  // namespace emulation
