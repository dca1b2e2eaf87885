// Schemas and argument checks of heatmap_peaks: the k best local maxima of each image of a heat map.
#include "ops/heatmap_peaks.h"

namespace cvops {

PeakSizes check_heatmap_peaks(const Tensor& heatmap, int64_t k, int64_t kernel) {
  constexpr const char* op = "heatmap_peaks";
  CVOPS_CHECK(heatmap.dim() == 4, op, ": heatmap must be [B, C, H, W], got ", shape_of(heatmap));
  check_floating(op, "heatmap", heatmap);
  CVOPS_CHECK(k >= 0, op, ": k must be >= 0, got ", k);
  CVOPS_CHECK(kernel >= 1 && kernel % 2 == 1, op, ": kernel must be odd and positive, got ", kernel);
  return {heatmap.size(0), heatmap.size(1), heatmap.size(2), heatmap.size(3), k};
}

PeakSizes check_heatmap_peaks_backward(const Tensor& grad, const Tensor& classes, const Tensor& ys, const Tensor& xs,
    int64_t channels, int64_t height, int64_t width) {
  constexpr const char* op = "heatmap_peaks_backward";
  CVOPS_CHECK(grad.dim() == 2, op, ": grad must be [B, k], got ", shape_of(grad));
  check_floating(op, "grad", grad);
  for (const auto& [name, index] : {std::pair{"classes", &classes}, std::pair{"ys", &ys}, std::pair{"xs", &xs}}) {
    CVOPS_CHECK(same_shape(*index, grad), op, ": ", name, " must have the shape of grad ", shape_of(grad), ", got ",
        shape_of(*index));
    CVOPS_CHECK(index->scalar_type() == ScalarType::Long, op, ": ", name, " must be int64, got ",
        torch::headeronly::toString(index->scalar_type()));
    CVOPS_CHECK(index->device() == grad.device(), op, ": ", name, " and grad must be on one device");
  }
  CVOPS_CHECK(channels >= 0 && height >= 0 && width >= 0, op, ": sizes must be >= 0, got ", channels, ", ", height,
      " and ", width);
  return {grad.size(0), channels, height, width, grad.size(1)};
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("heatmap_peaks(Tensor heatmap, SymInt k, int kernel) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "heatmap_peaks_backward(Tensor grad, Tensor classes, Tensor ys, Tensor xs, SymInt channels, SymInt height, "
      "SymInt width) -> Tensor");
}
