// CUDA side of roi_pool: memory formats, launches, registration. Kernels are in cuda/roi_pool.cuh.
#include "ops/roi_pool.h"

#include "cuda/roi.h"
#include "cuda/roi_pool.cuh"

namespace cvops::cuda {
namespace {

RoiPoolShape shape_from(const RoiSizes& s) {
  return {s.n, s.c, s.h, s.w, s.k, s.pooled_h, s.pooled_w};
}

std::tuple<Tensor, Tensor> roi_pool_cuda(
    const Tensor& input_in, const Tensor& rois_in, double scale, int64_t pooled_h, int64_t pooled_w) {
  const RoiSizes s = check_roi_pool(input_in, rois_in, scale, pooled_h, pooled_w);
  const DeviceScope scope(input_in);
  const bool last = follows_channels_last(input_in);
  const Tensor input = in_aligned_format(input_in, last), rois = computed(rois_in, input.scalar_type());
  Tensor out = empty_maps(input, s.k, s.c, pooled_h, pooled_w, input.scalar_type(), last);
  Tensor argmax = empty_maps(input, s.k, s.c, pooled_h, pooled_w, ScalarType::Int, last);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "roi_pool", [&] {
    using T = compute_t<scalar_t>;
    constexpr int pack = 16 / sizeof(scalar_t), planes = 4;
    const auto run = [&]<bool last, int N>() {
      const int64_t threads = s.k * s.bins() * ((s.c + N - 1) / N);
      CVOPS_LAUNCH((roi_pool_kernel<last, N, scalar_t, T>), blocks_for(threads, kRoiThreads), kRoiThreads, 0,
          scope.stream(), input.const_data_ptr<scalar_t>(), rois.const_data_ptr<T>(), shape_from(s), T(scale),
          out.mutable_data_ptr<scalar_t>(), argmax.mutable_data_ptr<int32_t>());
    };
    if (last && s.c % pack == 0) return run.template operator()<true, pack>();
    if (last) return run.template operator()<true, 1>();
    if (out.numel() >= kManyValues) return run.template operator()<false, planes>();
    run.template operator()<false, 1>();
  });
  return {out, argmax};
}

Tensor roi_pool_backward_cuda(const Tensor& grad_in, const Tensor& rois_in, const Tensor& argmax_in, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const RoiSizes s =
      check_roi_pool_backward(grad_in, rois_in, argmax_in, scale, pooled_h, pooled_w, batch, channels, height, width);
  const DeviceScope scope(grad_in);
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_aligned_format(grad_in, true), argmax = in_aligned_format(argmax_in, true);
  const Tensor rois = computed(rois_in, grad.scalar_type());
  Tensor out = empty_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), last);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "roi_pool_backward", [&] {
    using T = compute_t<scalar_t>;
    const int64_t tiles = GatherTile<T>::count(s.n, s.c, s.h, s.w);
    const auto run = [&]<bool last>() {
      CVOPS_LAUNCH((roi_pool_backward_kernel<last, scalar_t, T>), blocks_for(tiles, 1), kRoiThreads, 0, scope.stream(),
          grad.const_data_ptr<scalar_t>(), argmax.const_data_ptr<int32_t>(), rois.const_data_ptr<T>(), shape_from(s),
          T(scale), largest_gradient<scalar_t, T>(), out.mutable_data_ptr<scalar_t>(), tiles);
    };
    if (last) {
      run.template operator()<true>();
    } else {
      run.template operator()<false>();
    }
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("roi_pool", TORCH_BOX(&cvops::cuda::roi_pool_cuda));
  m.impl("roi_pool_backward", TORCH_BOX(&cvops::cuda::roi_pool_backward_cuda));
}
