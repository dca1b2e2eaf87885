// CPU side of ps_roi_align: its taps, and registration. The rest is in cpu/position_sensitive.h.
#include "ops/ps_roi_align.h"

#include "cpu/position_sensitive.h"

namespace cvops {
namespace {

auto bilinear_taps(const RoiSizes& s, double scale, int64_t sampling_ratio) {
  return [=]<typename T>(const std::vector<RoiRow<T>>& rows, const RoiGroups& groups) {
    return RoiTables<T>(groups, s.pooled_h, s.pooled_w, [&](int64_t k) {
      const auto axis = [&](T from, T to, int64_t pooled, int64_t size) {
        return SampledAxis<T>{roi_axis(from, to, T(scale), T(0.5), false, pooled, sampling_ratio), size};
      };
      return std::pair(axis(rows[k].y1, rows[k].y2, s.pooled_h, s.h), axis(rows[k].x1, rows[k].x2, s.pooled_w, s.w));
    });
  };
}

std::tuple<Tensor, Tensor> ps_roi_align_cpu(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio) {
  const RoiSizes s = check_ps_roi_align(input, rois, scale, pooled_h, pooled_w, sampling_ratio);
  return position_sensitive_cpu("ps_roi_align", s, input, rois, bilinear_taps(s, scale, sampling_ratio));
}

Tensor ps_roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, int64_t batch, int64_t channels, int64_t height,
    int64_t width) {
  const RoiSizes s = check_ps_roi_align_backward(
      grad, rois, channel_mapping, scale, pooled_h, pooled_w, sampling_ratio, batch, channels, height, width);
  return position_sensitive_backward_cpu(
      "ps_roi_align_backward", s, grad, rois, bilinear_taps(s, scale, sampling_ratio));
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("ps_roi_align", TORCH_BOX(&cvops::ps_roi_align_cpu));
  m.impl("ps_roi_align_backward", TORCH_BOX(&cvops::ps_roi_align_backward_cpu));
}
