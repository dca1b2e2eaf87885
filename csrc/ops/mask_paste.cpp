// Schemas and argument checks of mask_paste: the masks of boxes, drawn into whole images. The binary op thresholds what
// the other returns without storing it.
#include "ops/mask_paste.h"

namespace cvops {
namespace {

void check_boxes(const char* op, const Tensor& boxes, const char* name, const Tensor& other) {
  CVOPS_CHECK(boxes.dim() == 2 && boxes.size(0) == other.size(0) && boxes.size(1) == 4, op, ": boxes must be [",
      other.size(0), ", 4], got ", shape_of(boxes));
  check_floating(op, "boxes", boxes);
  check_floating(op, name, other);
  CVOPS_CHECK(boxes.device() == other.device(), op, ": boxes and ", name, " must be on one device");
}

}  // namespace

PasteSizes check_mask_paste(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width) {
  constexpr const char* op = "mask_paste";
  CVOPS_CHECK(masks.dim() == 3, op, ": masks must be [K, h, w], got ", shape_of(masks));
  check_boxes(op, boxes, "masks", masks);
  CVOPS_CHECK(height >= 0 && width >= 0, op, ": image size must be >= 0, got ", height, " x ", width);
  return {masks.size(0), masks.size(1), masks.size(2), height, width};
}

PasteSizes check_mask_paste_backward(const Tensor& grad, const Tensor& boxes, int64_t mask_height, int64_t mask_width) {
  constexpr const char* op = "mask_paste_backward";
  CVOPS_CHECK(grad.dim() == 3, op, ": grad must be [K, H, W], got ", shape_of(grad));
  check_boxes(op, boxes, "grad", grad);
  CVOPS_CHECK(
      mask_height >= 0 && mask_width >= 0, op, ": mask size must be >= 0, got ", mask_height, " x ", mask_width);
  return {grad.size(0), mask_height, mask_width, grad.size(1), grad.size(2)};
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("mask_paste(Tensor masks, Tensor boxes, SymInt height, SymInt width) -> Tensor");
  m.def("mask_paste_binary(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor");
  m.def("mask_paste_backward(Tensor grad, Tensor boxes, SymInt mask_height, SymInt mask_width) -> Tensor");
}
