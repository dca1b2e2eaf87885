// CUDA side of ps_roi_pool: registration. Launches are in cuda/position_sensitive.h.
#include "ops/ps_roi_pool.h"

#include "cuda/position_sensitive.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor> ps_roi_pool_cuda(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w) {
  const RoiSizes s = check_ps_roi_pool(input, rois, scale, pooled_h, pooled_w);
  return position_sensitive_cuda<WholeAxes>(s, input, rois, scale, 0);
}

Tensor ps_roi_pool_backward_cuda(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const RoiSizes s = check_ps_roi_pool_backward(
      grad, rois, channel_mapping, scale, pooled_h, pooled_w, batch, channels, height, width);
  return position_sensitive_backward_cuda<WholeAxes>(s, grad, rois, scale, 0);
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("ps_roi_pool", TORCH_BOX(&cvops::cuda::ps_roi_pool_cuda));
  m.impl("ps_roi_pool_backward", TORCH_BOX(&cvops::cuda::ps_roi_pool_backward_cuda));
}
