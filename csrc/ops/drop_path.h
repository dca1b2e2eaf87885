// Entry of drop_path: the argument checks that both backends call. The draw is in ops/drop_path_groups.h.
#pragma once

#include "ops/common.h"
#include "ops/drop_path_groups.h"

namespace cvops {

// Throws on shapes, dtypes and devices that do not fit; returns the number of groups.
CVOPS_API int64_t check_drop_path(const Tensor& input, const Tensor& seed, int64_t leading, double p, double scale);

}  // namespace cvops
