// CPU side of ps_roi_pool: its taps, and registration. The rest is in cpu/position_sensitive.h.
#include "ops/ps_roi_pool.h"

#include "cpu/position_sensitive.h"

namespace cvops {
namespace {

auto pooled_taps(const RoiSizes& s, double scale) {
  return [=]<typename T>(const std::vector<RoiRow<T>>& rows, const RoiGroups& groups) {
    return RoiTables<T>(groups, s.pooled_h, s.pooled_w, [&](int64_t k) {
      const RoiRow<T>& roi = rows[k];
      return std::pair(PooledAxis<T>{roi.y1, roi.y2, T(scale), false, s.pooled_h, s.h},
          PooledAxis<T>{roi.x1, roi.x2, T(scale), false, s.pooled_w, s.w});
    });
  };
}

std::tuple<Tensor, Tensor> ps_roi_pool_cpu(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w) {
  const RoiSizes s = check_ps_roi_pool(input, rois, scale, pooled_h, pooled_w);
  return position_sensitive_cpu("ps_roi_pool", s, input, rois, pooled_taps(s, scale));
}

Tensor ps_roi_pool_backward_cpu(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const RoiSizes s = check_ps_roi_pool_backward(
      grad, rois, channel_mapping, scale, pooled_h, pooled_w, batch, channels, height, width);
  return position_sensitive_backward_cpu("ps_roi_pool_backward", s, grad, rois, pooled_taps(s, scale));
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&cvops::ps_roi_pool_cpu));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&cvops::ps_roi_pool_backward_cpu));
}
