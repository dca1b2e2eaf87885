// Schema and argument checks of ps_roi_pool.
#include "ops/ps_roi_pool.h"

namespace cvops {

RoiSizes check_ps_roi_pool(const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w) {
  const RoiSizes s = check_roi_forward("ps_roi_pool", input, rois, scale, pooled_h, pooled_w);
  position_sensitive_channels("ps_roi_pool", s.c, pooled_h, pooled_w);
  return s;
}

RoiSizes check_ps_roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  constexpr const char* op = "ps_roi_pool_backward";
  const int64_t grad_channels = position_sensitive_channels(op, channels, pooled_h, pooled_w);
  const RoiSizes s =
      check_roi_backward(op, grad, rois, scale, pooled_h, pooled_w, batch, channels, height, width, grad_channels);
  check_roi_indices(op, "channel_mapping", channel_mapping, grad);
  return s;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "ps_roi_pool(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> "
      "(Tensor, Tensor)");
  m.def(
      "ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, float spatial_scale, "
      "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, "
      "SymInt width) -> Tensor");
}
