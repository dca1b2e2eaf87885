// CUDA side of ps_roi_align: registration. Launches are in cuda/position_sensitive.h.
#include "ops/ps_roi_align.h"

#include "cuda/position_sensitive.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor> ps_roi_align_cuda(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio) {
  const RoiSizes s = check_ps_roi_align(input, rois, scale, pooled_h, pooled_w, sampling_ratio);
  return position_sensitive_cuda<SampledAxes>(s, input, rois, scale, sampling_ratio);
}

Tensor ps_roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, int64_t batch, int64_t channels, int64_t height,
    int64_t width) {
  const RoiSizes s = check_ps_roi_align_backward(
      grad, rois, channel_mapping, scale, pooled_h, pooled_w, sampling_ratio, batch, channels, height, width);
  return position_sensitive_backward_cuda<SampledAxes>(s, grad, rois, scale, sampling_ratio);
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("ps_roi_align", TORCH_BOX(&cvops::cuda::ps_roi_align_cuda));
  m.impl("ps_roi_align_backward", TORCH_BOX(&cvops::cuda::ps_roi_align_backward_cuda));
}
