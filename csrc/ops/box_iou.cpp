// Schema and argument checks of box_iou. The metric is a BoxMetric; the public functions are in cvops/ops/box_iou.py.
#include "ops/box_iou.h"

#include "ops/box_geometry.h"

namespace cvops {

BoxIouSizes check_box_iou(const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps) {
  CVOPS_CHECK(metric >= kIou && metric <= kCiou, "box_iou: metric must be 0 to 3, got ", metric);
  CVOPS_CHECK(eps >= 0, "box_iou: eps must be >= 0, got ", eps);
  const int64_t rank = boxes1.dim();
  CVOPS_CHECK((rank == 2 || rank == 3) && boxes1.size(rank - 1) == 4,
      "box_iou: boxes1 must be [N, 4] or [B, N, 4], got ", shape_of(boxes1));
  CVOPS_CHECK(boxes2.dim() == rank && boxes2.size(rank - 1) == 4, "box_iou: boxes2 must be ",
      rank == 2 ? "[M, 4]" : "[B, M, 4]", " like boxes1 ", shape_of(boxes1), ", got ", shape_of(boxes2));
  CVOPS_CHECK(rank == 2 || boxes1.size(0) == boxes2.size(0),
      "box_iou: boxes1 and boxes2 must have one batch size, got ", shape_of(boxes1), " and ", shape_of(boxes2));
  check_floating("box_iou", "boxes1", boxes1);
  check_same_kind("box_iou", "boxes1", boxes1, "boxes2", boxes2);
  return {rank == 3 ? boxes1.size(0) : 1, boxes1.size(rank - 2), boxes2.size(rank - 2), rank == 3};
}

BoxIouSizes check_box_iou_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps) {
  const BoxIouSizes sizes = check_box_iou(boxes1, boxes2, metric, eps);
  const int64_t rank = boxes1.dim();
  CVOPS_CHECK(grad.dim() == rank && grad.size(rank - 2) == sizes.n && grad.size(rank - 1) == sizes.m &&
                  (rank == 2 || grad.size(0) == sizes.batch),
      "box_iou_backward: grad must have the shape of the result, got ", shape_of(grad));
  CVOPS_CHECK(grad.scalar_type() == compute_type(boxes1.scalar_type()), "box_iou_backward: grad must be ",
      torch::headeronly::toString(compute_type(boxes1.scalar_type())), ", got ",
      torch::headeronly::toString(grad.scalar_type()));
  return sizes;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("box_iou(Tensor boxes1, Tensor boxes2, int metric, float eps) -> Tensor");
  m.def("box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int metric, float eps) -> (Tensor, Tensor)");
}
