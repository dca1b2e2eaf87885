// CUDA side of heatmap_peaks: launches and registration. Nothing waits for the host. Kernels are in
// cuda/heatmap_peaks.cuh.
#include "ops/heatmap_peaks.h"

#include <algorithm>

#include "cuda/heatmap_peaks.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> heatmap_peaks_cuda(const Tensor& heatmap_in, int64_t k, int64_t kernel) {
  const PeakSizes s = check_heatmap_peaks(heatmap_in, k, kernel);
  const DeviceScope scope(heatmap_in);
  const Tensor heatmap = torch::stable::contiguous(heatmap_in);
  Tensor scores = torch::stable::new_empty(heatmap, {s.batch, k});
  Tensor classes = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  Tensor ys = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  Tensor xs = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  if (scores.numel() == 0) return {scores, classes, ys, xs};
  const int64_t tiles = (s.image() + kPeakTile - 1) / kPeakTile;
  const int each = static_cast<int>(std::min({k, int64_t{kPeakTile}, s.image()}));
  const int64_t slots = tiles * each;
  CVOPS_DISPATCH_FLOATS(heatmap.scalar_type(), "heatmap_peaks", [&] {
    using T = compute_t<scalar_t>;
    using Key = std::conditional_t<std::is_same_v<T, double>, unsigned long long, unsigned>;
    constexpr T nothing = -std::numeric_limits<T>::infinity();
    const scalar_t* from = heatmap.const_data_ptr<scalar_t>();
    Sorted sorted;
    Tensor places;
    const int64_t* order = nullptr;
    const int16_t* place = nullptr;
    if (slots > 0) {
      Tensor values = torch::stable::new_empty(heatmap, {s.batch, slots});
      places = torch::stable::new_empty(heatmap, {s.batch, slots}, ScalarType::Short);
      CVOPS_LAUNCH((peaks_of_tile_kernel<Key, scalar_t, T>), blocks_for(s.batch * tiles, 1), kPeakThreads, 0,
          scope.stream(), from, s, PeakWindow{s.height, s.width, kernel / 2}, tiles, each, nothing,
          values.mutable_data_ptr<scalar_t>(), places.mutable_data_ptr<int16_t>());
      sorted = sort_stable(values, -1, true);
      order = sorted.indices.const_data_ptr<int64_t>();
      place = places.const_data_ptr<int16_t>();
    }
    CVOPS_LAUNCH(ranked_peaks_kernel<scalar_t>, blocks_for(scores.numel(), kPeakThreads), kPeakThreads, 0,
        scope.stream(), from, s, order, place, slots, each, static_cast<scalar_t>(nothing),
        scores.mutable_data_ptr<scalar_t>(), classes.mutable_data_ptr<int64_t>(), ys.mutable_data_ptr<int64_t>(),
        xs.mutable_data_ptr<int64_t>());
  });
  return {scores, classes, ys, xs};
}

Tensor heatmap_peaks_backward_cuda(const Tensor& grad_in, const Tensor& classes_in, const Tensor& ys_in,
    const Tensor& xs_in, int64_t channels, int64_t height, int64_t width) {
  const PeakSizes s = check_heatmap_peaks_backward(grad_in, classes_in, ys_in, xs_in, channels, height, width);
  const DeviceScope scope(grad_in);
  const Tensor grad = torch::stable::contiguous(grad_in), classes = torch::stable::contiguous(classes_in);
  const Tensor ys = torch::stable::contiguous(ys_in), xs = torch::stable::contiguous(xs_in);
  Tensor out = torch::stable::new_empty(grad, {s.batch, channels, height, width});
  fill_bytes(out.mutable_data_ptr(), 0, static_cast<size_t>(out.numel()) * out.element_size(), scope.stream());
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "heatmap_peaks_backward", [&] {
    CVOPS_LAUNCH(heatmap_peaks_backward_kernel<scalar_t>, blocks_for(s.batch * s.k, kPeakThreads), kPeakThreads, 0,
        scope.stream(), grad.const_data_ptr<scalar_t>(), classes.const_data_ptr<int64_t>(),
        ys.const_data_ptr<int64_t>(), xs.const_data_ptr<int64_t>(), s, out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("heatmap_peaks", TORCH_BOX(&cvops::cuda::heatmap_peaks_cuda));
  m.impl("heatmap_peaks_backward", TORCH_BOX(&cvops::cuda::heatmap_peaks_backward_cuda));
}
