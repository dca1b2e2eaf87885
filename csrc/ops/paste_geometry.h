// Where a pixel of the image falls in a mask, for both backends. Coordinates are continuous: the centre of pixel p is
// p + 1/2, and a box maps linearly onto its mask, whose cells have their centres at 1/2, 3/2, .... Every operation
// rounds once, so that a threshold decides alike on the CPU and on CUDA.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

// K masks, each for an image of its own.
struct PasteSizes {
  int64_t k, mask_h, mask_w, height, width;

  HOST_DEVICE int64_t mask() const { return mask_h * mask_w; }
  HOST_DEVICE int64_t image() const { return height * width; }
};

// A pixel lies between the cells `low` and low + 1, at `weight` from the first; cells -1 and `cells` are zero. Without
// a cell in reach, `low` is kNoCell.
constexpr int64_t kNoCell = -2;
template <typename T>
struct PasteTap {
  int64_t low;
  T weight;
};

// One axis of a box over a mask with that many cells.
template <typename T>
struct PasteAxis {
  T from, to;
  int64_t cells;

  // A box without a positive finite extent, or with a NaN, holds no pixel.
  HOST_DEVICE bool empty() const {
    const T extent = to - from;
    return !(extent > T(0) && extent - extent == T(0)) || cells == 0;
  }

  HOST_DEVICE PasteTap<T> tap(int64_t pixel) const {
    const T inside = div_rn(sub_rn(static_cast<T>(pixel) + T(0.5), from), sub_rn(to, from));
    const T at = sub_rn(mul_rn(inside, static_cast<T>(cells)), T(0.5));
    if (!(at > T(-1) && at < static_cast<T>(cells))) return {kNoCell, T(0)};
    int64_t low = static_cast<int64_t>(at);
    if (static_cast<T>(low) > at) --low;
    return {low, sub_rn(at, static_cast<T>(low))};
  }
};

// Between a and b, in two products and a sum.
template <typename T>
HOST_DEVICE T paste_between(T a, T b, T weight) {
  return add_rn(mul_rn(sub_rn(T(1), weight), a), mul_rn(weight, b));
}

}  // namespace cvops
