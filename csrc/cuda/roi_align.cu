// CUDA side of roi_align and multiscale_roi_align: memory formats, launches, registration. Kernels are in
// cuda/roi_align.cuh.
#include "ops/roi_align.h"

#include "cuda/roi.h"
#include "cuda/roi_align.cuh"

namespace cvops::cuda {
namespace {

static_assert(kRoiMaps == kMaxLevels);

RoiAlignShape shape_from(const RoiAlign& job) {
  return {job.n, job.c, job.k, job.pooled_h, job.pooled_w, job.sampling_ratio, job.aligned, job.levels};
}

Tensor forward(const RoiAlign& job, const std::vector<Tensor>& features_in, const Tensor& rois_in) {
  const DeviceScope scope(features_in[0]);
  const ScalarType type = features_in[0].scalar_type();
  const bool last = follows_channels_last(features_in[0]);
  std::vector<Tensor> features;
  for (const Tensor& feature : features_in) features.push_back(in_aligned_format(feature, last));
  Tensor out = empty_maps(features[0], job.k, job.c, job.pooled_h, job.pooled_w, type, last);
  if (out.numel() == 0) return out;
  const Tensor rois = computed(rois_in, type);
  CVOPS_DISPATCH_FLOATS(type, "roi_align", [&] {
    using T = compute_t<scalar_t>;
    RoiMaps<scalar_t, T> maps{};
    for (size_t i = 0; i < features.size(); ++i) {
      maps.at[i] = {features[i].const_data_ptr<scalar_t>(), job.maps[i].h, job.maps[i].w, T(job.maps[i].scale)};
    }
    constexpr int pack = 16 / sizeof(scalar_t), planes = 8;
    const auto run = [&]<bool last, int N>() {
      const int64_t threads = job.k * job.bins() * ((job.c + N - 1) / N);
      CVOPS_LAUNCH((roi_align_kernel<last, N, scalar_t, T>), blocks_for(threads, kRoiThreads), kRoiThreads, 0,
          scope.stream(), maps, rois.const_data_ptr<T>(), shape_from(job), out.mutable_data_ptr<scalar_t>());
    };
    if (last && job.c % pack == 0) return run.template operator()<true, pack>();
    if (last) return run.template operator()<true, 1>();
    if (out.numel() >= kManyValues) return run.template operator()<false, planes>();
    run.template operator()<false, 1>();
  });
  return out;
}

std::vector<Tensor> backward(const RoiAlign& job, const Tensor& grad_in, const Tensor& rois_in) {
  const DeviceScope scope(grad_in);
  const ScalarType type = grad_in.scalar_type();
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_aligned_format(grad_in, true), rois = computed(rois_in, type);
  std::vector<Tensor> outs;
  for (const RoiMap& map : job.maps) outs.push_back(empty_maps(grad, job.n, job.c, map.h, map.w, type, last));
  CVOPS_DISPATCH_FLOATS(type, "roi_align_backward", [&] {
    using T = compute_t<scalar_t>;
    for (size_t level = 0; level < outs.size(); ++level) {
      const RoiMap& map = job.maps[level];
      const int64_t tiles = GatherTile<T>::count(job.n, job.c, map.h, map.w);
      const auto run = [&]<bool last>() {
        CVOPS_LAUNCH((roi_align_backward_kernel<last, scalar_t, T>), blocks_for(tiles, 1), kRoiThreads, 0,
            scope.stream(), grad.const_data_ptr<scalar_t>(), rois.const_data_ptr<T>(), shape_from(job),
            static_cast<int64_t>(level), T(map.scale), map.h, map.w, largest_gradient<scalar_t, T>(),
            outs[level].mutable_data_ptr<scalar_t>(), tiles);
      };
      if (last) {
        run.template operator()<true>();
      } else {
        run.template operator()<false>();
      }
    }
  });
  return outs;
}

Tensor roi_align_cuda(const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w,
    int64_t sampling_ratio, bool aligned) {
  return forward(check_roi_align(input, rois, scale, pooled_h, pooled_w, sampling_ratio, aligned), {input}, rois);
}

Tensor roi_align_backward_cuda(const Tensor& grad, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w,
    int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio, bool aligned) {
  const RoiAlign job = check_roi_align_backward(
      grad, rois, scale, pooled_h, pooled_w, batch, channels, height, width, sampling_ratio, aligned);
  return backward(job, grad, rois)[0];
}

Tensor multiscale_roi_align_cuda(std::vector<Tensor> features, const Tensor& rois, std::vector<double> scales,
    int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned, int64_t canonical_scale,
    int64_t canonical_level) {
  const RoiAlign job = check_multiscale_roi_align(
      features, rois, scales, pooled_h, pooled_w, sampling_ratio, aligned, canonical_scale, canonical_level);
  return forward(job, features, rois);
}

std::vector<Tensor> multiscale_roi_align_backward_cuda(const Tensor& grad, const Tensor& rois,
    std::vector<double> scales, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned,
    int64_t canonical_scale, int64_t canonical_level, int64_t batch, std::vector<int64_t> heights,
    std::vector<int64_t> widths) {
  const RoiAlign job = check_multiscale_roi_align_backward(grad, rois, scales, pooled_h, pooled_w, sampling_ratio,
      aligned, canonical_scale, canonical_level, batch, heights, widths);
  return backward(job, grad, rois);
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("roi_align", TORCH_BOX(&cvops::cuda::roi_align_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&cvops::cuda::roi_align_backward_cuda));
  m.impl("multiscale_roi_align", TORCH_BOX(&cvops::cuda::multiscale_roi_align_cuda));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&cvops::cuda::multiscale_roi_align_backward_cuda));
}
