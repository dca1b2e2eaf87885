// The draw of drop_path that both backends share. Groups are what is dropped together: the whole tensor (0 leading
// dimensions), a sample (1), or a channel of a sample (2). Group i is dropped if the 64 bits of counter i in the stream
// below say so (ops/philox.h).
#pragma once

#include "ops/philox.h"

namespace cvops {

constexpr uint32_t kGroupStream = 2;

HOST_DEVICE bool group_is_dropped(uint64_t seed, int64_t group, Chance p) {
  return p.happens(philox(seed, static_cast<uint64_t>(group), kGroupStream));
}

}  // namespace cvops
