// Scratch memory that the CPU sides of the RoI ops share.
#pragma once

#include "cpu/fresh_memory.h"
#include "ops/memory_format.h"

namespace cvops {

constexpr int64_t kWindowChannels = 16;  // of cpu/roi_window-inl.h
constexpr int64_t kMostWindowBytes = 16 << 20;
// The gradient of a map is made in bands of rows, 16 channels at a time, each by one thread that goes through the RoIs
// of the image in order: deterministic, without atomics, and the sums of a band stay in L2.
constexpr int64_t kBandBytes = 192 << 10;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace cvops
