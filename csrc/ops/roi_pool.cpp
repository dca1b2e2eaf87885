// Schema and argument checks of roi_pool.
#include "ops/roi_pool.h"

namespace cvops {

RoiSizes check_roi_pool(const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w) {
  return check_roi_forward("roi_pool", input, rois, scale, pooled_h, pooled_w);
}

RoiSizes check_roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  constexpr const char* op = "roi_pool_backward";
  const RoiSizes s =
      check_roi_backward(op, grad, rois, scale, pooled_h, pooled_w, batch, channels, height, width, channels);
  check_roi_indices(op, "argmax", argmax, grad);
  return s;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "(Tensor, Tensor)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, SymInt pooled_height, "
      "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor");
}
