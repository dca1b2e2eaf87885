// Entry of drop_block: the argument checks that both backends call, and the seed probability. Geometry is in
// ops/drop_block_geometry.h.
#pragma once

#include <vector>

#include "ops/common.h"
#include "ops/drop_block_geometry.h"

namespace cvops {

// The gamma for which the expected share of dropped elements is p. An element that c seed positions cover survives with
// probability (1 - gamma)^c, so q = 1 - gamma solves mean over elements of q^c = 1 - p. c is a product of one count per
// axis, so the mean runs over a histogram of at most block_d x block_h x block_w values. Ghiasi et al. (2018,
// arXiv:1810.12890) use the first-order solution, which ignores that blocks overlap and that border elements have fewer
// of them.
CVOPS_API double drop_block_gamma(const DropBlockShape& shape, double p);

struct DropBlockPlan {
  DropBlockShape shape;
  Chance gamma;
  bool rare;      // draw gaps, not seeds
  GapTable gaps;  // if rare
};

// Throws on shapes, dtypes and devices that do not fit. `block` is (height, width) or (depth, height, width).
CVOPS_API DropBlockPlan check_drop_block_mask(
    const Tensor& input, const Tensor& seed, const std::vector<int64_t>& block, double p);
CVOPS_API void check_drop_block(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps);
CVOPS_API void check_drop_block_in_place(const Tensor& input, const Tensor& mask, const Tensor& kept, double eps);
CVOPS_API void check_seed(const char* op, const Tensor& seed, const Tensor& input);

}  // namespace cvops
