// Schema and argument checks of drop_path: whole groups of the input set to zero, the others scaled. drop_channel and
// scheduled_drop_path are the same op; see cvops/ops/drop_path.py.
#include "ops/drop_path.h"

#include "ops/drop_block.h"

namespace cvops {

int64_t check_drop_path(const Tensor& input, const Tensor& seed, int64_t leading, double p, double scale) {
  CVOPS_CHECK(leading >= 0 && leading <= 2, "drop_path: leading must be 0, 1 or 2, got ", leading);
  CVOPS_CHECK(
      input.dim() >= leading, "drop_path: input must have at least ", leading, " dimensions, got ", shape_of(input));
  check_floating("drop_path", "input", input);
  CVOPS_CHECK(p > 0 && p <= 1, "drop_path: p must be in (0, 1], got ", p);
  CVOPS_CHECK(scale >= 0, "drop_path: scale must be >= 0, got ", scale);
  check_seed("drop_path", seed, input);
  int64_t groups = 1;
  for (int64_t i = 0; i < leading; ++i) groups *= input.size(i);
  return groups;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("drop_path(Tensor input, Tensor seed, int leading, float p, float scale) -> Tensor");
}
