// Argument checks that the RoI ops share. Batch indices are data: the CPU kernels raise on one that names no image, the
// CUDA kernels, which do not wait for the host, return zeros for it.
#include "ops/roi.h"

#include "ops/roi_geometry.h"

namespace cvops {
namespace {

constexpr int64_t kMaxSide = INT32_MAX;

void check_rois(const char* op, const Tensor& other, const Tensor& rois, double scale, int64_t ph, int64_t pw) {
  CVOPS_CHECK(rois.dim() == 2 && rois.size(1) == 5, op, ": rois must be [K, 5], got ", shape_of(rois));
  check_floating(op, "rois", rois);
  CVOPS_CHECK(rois.device() == other.device(), op, ": rois and input must be on one device");
  CVOPS_CHECK(scale - scale == 0, op, ": spatial_scale must be finite, got ", scale);
  CVOPS_CHECK(ph > 0 && pw > 0 && ph < kMaxSide / pw, op, ": output_size must be positive, got ", ph, " x ", pw);
}

void check_map(const char* op, int64_t h, int64_t w) {
  CVOPS_CHECK(h <= kMaxSide && w <= kMaxSide && (h == 0 || w <= kMaxSide / h), op,
      ": a feature map must have fewer than 2^31 pixels, got ", h, " x ", w);
}

}  // namespace

RoiSizes check_roi_forward(
    const char* op, const Tensor& input, const Tensor& rois, double scale, int64_t ph, int64_t pw) {
  CVOPS_CHECK(input.dim() == 4, op, ": input must be [N, C, H, W], got ", shape_of(input));
  check_floating(op, "input", input);
  check_rois(op, input, rois, scale, ph, pw);
  check_map(op, input.size(2), input.size(3));
  return {input.size(0), input.size(1), input.size(2), input.size(3), rois.size(0), ph, pw};
}

RoiSizes check_roi_backward(const char* op, const Tensor& grad, const Tensor& rois, double scale, int64_t ph,
    int64_t pw, int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t grad_channels) {
  check_floating(op, "grad", grad);
  check_rois(op, grad, rois, scale, ph, pw);
  CVOPS_CHECK(batch >= 0 && channels >= 0 && height >= 0 && width >= 0, op,
      ": the size of the input must not be negative, got [", batch, ", ", channels, ", ", height, ", ", width, "]");
  check_map(op, height, width);
  const int64_t k = rois.size(0);
  CVOPS_CHECK(
      grad.dim() == 4 && grad.size(0) == k && grad.size(1) == grad_channels && grad.size(2) == ph && grad.size(3) == pw,
      op, ": grad must be [", k, ", ", grad_channels, ", ", ph, ", ", pw, "], got ", shape_of(grad));
  return {batch, channels, height, width, k, ph, pw};
}

void check_sampling_ratio(const char* op, int64_t sampling_ratio) {
  CVOPS_CHECK(sampling_ratio <= kMaxSamplingRatio, op, ": sampling_ratio must be at most ", kMaxSamplingRatio, ", got ",
      sampling_ratio);
}

int64_t position_sensitive_channels(const char* op, int64_t channels, int64_t ph, int64_t pw) {
  CVOPS_CHECK(ph > 0 && pw > 0 && ph < kMaxSide / pw && channels % (ph * pw) == 0, op,
      ": the channels of the input must be a multiple of ", ph, " x ", pw, " bins, got ", channels);
  return channels / (ph * pw);
}

void check_roi_indices(const char* op, const char* name, const Tensor& indices, const Tensor& grad) {
  CVOPS_CHECK(indices.scalar_type() == ScalarType::Int, op, ": ", name, " must be int32, got ",
      torch::headeronly::toString(indices.scalar_type()));
  CVOPS_CHECK(same_shape(indices, grad), op, ": ", name, " must have the shape of grad ", shape_of(grad), ", got ",
      shape_of(indices));
  CVOPS_CHECK(indices.device() == grad.device(), op, ": ", name, " and grad must be on one device");
}

}  // namespace cvops
