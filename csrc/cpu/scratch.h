// Scratch memory for every thread of one parallel_for, allocated before it, because nothing may throw inside.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/fresh_memory.h"

namespace cvops {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t each)
      : each_((each + kApart - 1) / kApart * kApart), memory_(new T[each_ * torch::stable::get_num_threads()]) {
    advise_huge_pages(memory_.get(), each_ * torch::stable::get_num_threads() * sizeof(T));
  }

  // Once per thread: at the start of its range.
  T* take() { return memory_.get() + each_ * next_.fetch_add(1); }

 private:
  static constexpr int64_t kApart = 64;  // elements, so that threads share no cache line
  int64_t each_;
  std::unique_ptr<T[]> memory_;
  std::atomic<int64_t> next_{0};
};

}  // namespace cvops
