// Launches that ps_roi_align and ps_roi_pool share. Kernels are in cuda/position_sensitive.cuh.
#pragma once

#include "cuda/position_sensitive.cuh"
#include "cuda/roi.h"
#include "ops/roi.h"

namespace cvops::cuda {

template <typename T>
PositionShape<T> position_shape(const RoiSizes& s, double scale, int64_t sampling_ratio) {
  return {s.n, s.c, s.h, s.w, s.k, s.pooled_h, s.pooled_w, sampling_ratio, T(scale)};
}

template <template <typename> typename Axes>
std::tuple<Tensor, Tensor> position_sensitive_cuda(
    const RoiSizes& s, const Tensor& input_in, const Tensor& rois_in, double scale, int64_t sampling_ratio) {
  const DeviceScope scope(input_in);
  const bool last = follows_channels_last(input_in);
  const Tensor input = in_aligned_format(input_in, last), rois = computed(rois_in, input.scalar_type());
  const int64_t channels = s.c / s.bins();
  Tensor out = empty_maps(input, s.k, channels, s.pooled_h, s.pooled_w, input.scalar_type(), last);
  Tensor channel_mapping = empty_maps(input, s.k, channels, s.pooled_h, s.pooled_w, ScalarType::Int, last);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "position_sensitive", [&] {
    using T = compute_t<scalar_t>;
    const auto run = [&]<bool last>() {
      CVOPS_LAUNCH((position_sensitive_kernel<Axes<T>, last, scalar_t, T>), blocks_for(out.numel(), kRoiThreads),
          kRoiThreads, 0, scope.stream(), input.const_data_ptr<scalar_t>(), rois.const_data_ptr<T>(),
          position_shape<T>(s, scale, sampling_ratio), out.mutable_data_ptr<scalar_t>(),
          channel_mapping.mutable_data_ptr<int32_t>());
    };
    if (last) {
      run.template operator()<true>();
    } else {
      run.template operator()<false>();
    }
  });
  return {out, channel_mapping};
}

template <template <typename> typename Axes>
Tensor position_sensitive_backward_cuda(
    const RoiSizes& s, const Tensor& grad_in, const Tensor& rois_in, double scale, int64_t sampling_ratio) {
  const DeviceScope scope(grad_in);
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_aligned_format(grad_in, last), rois = computed(rois_in, grad.scalar_type());
  Tensor out = empty_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), last);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "position_sensitive_backward", [&] {
    using T = compute_t<scalar_t>;
    const int64_t tiles = GatherTile<T>::count(s.n, s.c, s.h, s.w);
    const auto run = [&]<bool last>() {
      CVOPS_LAUNCH((position_sensitive_backward_kernel<Axes<T>, last, scalar_t, T>), blocks_for(tiles, 1), kRoiThreads,
          0, scope.stream(), grad.const_data_ptr<scalar_t>(), map_strides(s.c / s.bins(), s.pooled_h, s.pooled_w, last),
          rois.const_data_ptr<T>(), position_shape<T>(s, scale, sampling_ratio), largest_gradient<scalar_t, T>(),
          out.mutable_data_ptr<scalar_t>(), tiles);
    };
    if (last) {
      run.template operator()<true>();
    } else {
      run.template operator()<false>();
    }
  });
  return out;
}

}  // namespace cvops::cuda
