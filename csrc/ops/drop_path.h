// Entry of drop_path: the argument checks that both backends call, and the draw of one group.
//
// Groups are what is dropped together: the whole tensor (0 leading dimensions), a sample (1), or a channel of a sample
// (2). Group i is dropped if the 64 bits of counter i in the stream below say so (ops/philox.h).
#pragma once

#include "ops/common.h"
#include "ops/philox.h"

namespace cvops {

constexpr uint32_t kGroupStream = 2;

HOST_DEVICE bool group_is_dropped(uint64_t seed, int64_t group, Chance p) {
  return p.happens(philox(seed, static_cast<uint64_t>(group), kGroupStream));
}

// Throws on shapes, dtypes and devices that do not fit; returns the number of groups.
CVOPS_API int64_t check_drop_path(const Tensor& input, const Tensor& seed, int64_t leading, double p, double scale);

}  // namespace cvops
