// Schemas and argument checks of roi_align and multiscale_roi_align.
#include "ops/roi_align.h"

#include <algorithm>

namespace cvops {
namespace {

RoiLevels levels_of(const std::vector<double>& scales, int64_t canonical_scale, int64_t canonical_level) {
  constexpr const char* op = "multiscale_roi_align";
  for (double scale : scales) {
    CVOPS_CHECK(scale > 0 && scale <= 1e9, op, ": scales must be positive, got ", scale);
  }
  CVOPS_CHECK(canonical_scale > 0, op, ": canonical_scale must be positive, got ", canonical_scale);
  // As torchvision infers them: from the first and the last scale, in float, cut off.
  const auto lowest = static_cast<int64_t>(-std::log2(static_cast<float>(scales.front())));
  const auto highest = static_cast<int64_t>(-std::log2(static_cast<float>(scales.back())));
  return {lowest, highest, canonical_scale, canonical_level, static_cast<int64_t>(scales.size())};
}

void check_levels(size_t levels, size_t scales) {
  constexpr const char* op = "multiscale_roi_align";
  CVOPS_CHECK(levels > 0 && levels <= kMaxLevels, op, ": features must be 1 to ", kMaxLevels, " tensors, got ", levels);
  CVOPS_CHECK(scales == levels, op, ": scales must be one number per feature map, got ", scales, " for ", levels);
}

}  // namespace

RoiAlign check_roi_align(const Tensor& input, const Tensor& rois, double scale, int64_t ph, int64_t pw,
    int64_t sampling_ratio, bool aligned) {
  const RoiSizes s = check_roi_forward("roi_align", input, rois, scale, ph, pw);
  check_sampling_ratio("roi_align", sampling_ratio);
  return {s.n, s.c, s.k, ph, pw, sampling_ratio, aligned, {{s.h, s.w, scale}}, {0, 0, 1, 0, 1}};
}

RoiAlign check_roi_align_backward(const Tensor& grad, const Tensor& rois, double scale, int64_t ph, int64_t pw,
    int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio, bool aligned) {
  check_roi_backward("roi_align_backward", grad, rois, scale, ph, pw, batch, channels, height, width, channels);
  check_sampling_ratio("roi_align_backward", sampling_ratio);
  return {batch, channels, rois.size(0), ph, pw, sampling_ratio, aligned, {{height, width, scale}}, {0, 0, 1, 0, 1}};
}

RoiAlign check_multiscale_roi_align(const std::vector<Tensor>& features, const Tensor& rois,
    const std::vector<double>& scales, int64_t ph, int64_t pw, int64_t sampling_ratio, bool aligned,
    int64_t canonical_scale, int64_t canonical_level) {
  constexpr const char* op = "multiscale_roi_align";
  check_levels(features.size(), scales.size());
  check_sampling_ratio(op, sampling_ratio);
  RoiAlign job{features[0].size(0), 0, rois.size(0), ph, pw, sampling_ratio, aligned, {}, {}};
  for (size_t i = 0; i < features.size(); ++i) {
    const RoiSizes s = check_roi_forward(op, features[i], rois, scales[i], ph, pw);
    if (i == 0) job.c = s.c;
    CVOPS_CHECK(s.n == job.n && s.c == job.c, op, ": features must agree in batch and channels, got ",
        shape_of(features[0]), " and ", shape_of(features[i]));
    check_same_kind(op, "features[0]", features[0], "another of features", features[i]);
    job.maps.push_back({s.h, s.w, scales[i]});
  }
  job.levels = levels_of(scales, canonical_scale, canonical_level);
  return job;
}

RoiAlign check_multiscale_roi_align_backward(const Tensor& grad, const Tensor& rois, const std::vector<double>& scales,
    int64_t ph, int64_t pw, int64_t sampling_ratio, bool aligned, int64_t canonical_scale, int64_t canonical_level,
    int64_t batch, const std::vector<int64_t>& heights, const std::vector<int64_t>& widths) {
  constexpr const char* op = "multiscale_roi_align_backward";
  check_levels(heights.size(), scales.size());
  CVOPS_CHECK(widths.size() == heights.size(), op, ": heights and widths must be of one length, got ", heights.size(),
      " and ", widths.size());
  CVOPS_CHECK(grad.dim() == 4, op, ": grad must be [K, C, h, w], got ", shape_of(grad));
  check_sampling_ratio(op, sampling_ratio);
  const int64_t channels = grad.size(1);
  RoiAlign job{batch, channels, 0, ph, pw, sampling_ratio, aligned, {}, {}};
  for (size_t i = 0; i < heights.size(); ++i) {
    const RoiSizes s =
        check_roi_backward(op, grad, rois, scales[i], ph, pw, batch, channels, heights[i], widths[i], channels);
    job.k = s.k;
    job.maps.push_back({s.h, s.w, scales[i]});
  }
  job.levels = levels_of(scales, canonical_scale, canonical_level);
  return job;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
      "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "multiscale_roi_align(Tensor[] features, Tensor rois, float[] scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, int canonical_scale, int canonical_level) -> Tensor");
  m.def(
      "multiscale_roi_align_backward(Tensor grad, Tensor rois, float[] scales, SymInt pooled_height, "
      "SymInt pooled_width, int sampling_ratio, bool aligned, int canonical_scale, int canonical_level, "
      "SymInt batch_size, SymInt[] heights, SymInt[] widths) -> Tensor[]");
}
