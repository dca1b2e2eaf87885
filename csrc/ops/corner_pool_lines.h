// What corner_pool does to a tensor, for both backends: the lines it runs along, and which element holds the maximum.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

// The values of `direction`: which way the maximum is carried. Top and left start at the far end of their lines.
enum CornerDirection : int64_t { kCornerTop, kCornerBottom, kCornerLeft, kCornerRight };

// A dense tensor as [outer, length, inner]: outer * inner lines of `length` elements, `inner` apart. inner is 1 only
// for the horizontal directions of contiguous maps (and for maps one element wide).
struct CornerLines {
  int64_t outer, length, inner;
  bool reverse;  // walked from the last element to the first
};

// Whether `later`, the next element of the walk, takes the place of the maximum of those before it: the last of equal
// values holds it, and every NaN does, as in torch.cummax.
template <typename T>
HOST_DEVICE bool takes_over(T later, T before) {
  return later >= before || later != later;
}

}  // namespace cvops
