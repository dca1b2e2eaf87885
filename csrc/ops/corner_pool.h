// Entries of corner_pool: the argument checks that both backends call. The lines are in ops/corner_pool_lines.h.
#pragma once

#include "ops/common.h"
#include "ops/corner_pool_lines.h"
#include "ops/memory_format.h"

namespace cvops {

CVOPS_API void check_corner_pool(const Tensor& input, int64_t direction);
// For the two ops that move `moved` (grad, values) to or from the places where `input` has its maxima.
CVOPS_API void check_corner_moves(
    const char* op, const char* name, const Tensor& moved, const Tensor& input, int64_t direction);

// Of a dense input.
CVOPS_API CornerLines corner_lines(const Tensor& input, int64_t direction);

}  // namespace cvops
