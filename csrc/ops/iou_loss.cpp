// Schema and argument checks of iou_loss: 1 - metric of matched pairs. Reduction and weights are in
// cvops/ops/iou_loss.py.
#include "ops/iou_loss.h"

#include "ops/box_geometry.h"

namespace cvops {

int64_t check_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps) {
  CVOPS_CHECK(metric >= kIou && metric <= kCiou, "iou_loss: metric must be 0 to 3, got ", metric);
  CVOPS_CHECK(eps >= 0, "iou_loss: eps must be >= 0, got ", eps);
  CVOPS_CHECK(boxes1.dim() == 2 && boxes1.size(1) == 4, "iou_loss: boxes1 must be [N, 4], got ", shape_of(boxes1));
  CVOPS_CHECK(same_shape(boxes1, boxes2), "iou_loss: boxes2 must have the shape of boxes1 ", shape_of(boxes1), ", got ",
      shape_of(boxes2));
  check_floating("iou_loss", "boxes1", boxes1);
  check_same_kind("iou_loss", "boxes1", boxes1, "boxes2", boxes2);
  return boxes1.size(0);
}

int64_t check_iou_loss_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps) {
  const int64_t n = check_iou_loss(boxes1, boxes2, metric, eps);
  CVOPS_CHECK(grad.dim() == 1 && grad.size(0) == n, "iou_loss_backward: grad must be [", n, "], got ", shape_of(grad));
  const ScalarType type = compute_type(boxes1.scalar_type());
  CVOPS_CHECK(grad.scalar_type() == type, "iou_loss_backward: grad must be ", torch::headeronly::toString(type),
      ", got ", torch::headeronly::toString(grad.scalar_type()));
  return n;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("iou_loss(Tensor boxes1, Tensor boxes2, int metric, float eps) -> Tensor");
  m.def("iou_loss_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int metric, float eps) -> (Tensor, Tensor)");
}
