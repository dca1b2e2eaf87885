// Schemas and argument checks of corner_pool.
#include "ops/corner_pool.h"

namespace cvops {
namespace {

void check_maps(const char* op, const Tensor& input, int64_t direction) {
  CVOPS_CHECK(input.dim() == 4, op, ": input must be [N, C, H, W], got ", shape_of(input));
  check_floating(op, "input", input);
  CVOPS_CHECK(direction >= kCornerTop && direction <= kCornerRight, op,
      ": direction must be 0 (top), 1 (bottom), 2 (left) or 3 (right), got ", direction);
}

}  // namespace

void check_corner_pool(const Tensor& input, int64_t direction) {
  check_maps("corner_pool", input, direction);
}

void check_corner_moves(const char* op, const char* name, const Tensor& moved, const Tensor& input, int64_t direction) {
  check_maps(op, input, direction);
  CVOPS_CHECK(same_shape(moved, input), op, ": ", name, " must have the shape of input, ", shape_of(input), ", got ",
      shape_of(moved));
  check_same_kind(op, name, moved, "input", input);
}

CornerLines corner_lines(const Tensor& input, int64_t direction) {
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  const bool last = is_channels_last(input), reverse = direction == kCornerTop || direction == kCornerLeft;
  const int64_t planes = last ? n : n * c, pixel = last ? c : 1;
  if (direction == kCornerTop || direction == kCornerBottom) return {planes, h, w * pixel, reverse};
  return {planes * h, w, pixel, reverse};
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("corner_pool(Tensor input, int direction) -> Tensor");
  m.def("corner_pool_backward(Tensor grad, Tensor input, int direction) -> Tensor");
  m.def("corner_pool_gather(Tensor values, Tensor input, int direction) -> Tensor");
}
