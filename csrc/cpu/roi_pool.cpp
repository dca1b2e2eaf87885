// CPU side of roi_pool: memory formats, threads, registration. Loops are in cpu/roi_pool-inl.h.
#include "ops/roi_pool.h"

#include "cpu/roi_tables.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/roi_pool-inl.h"
#include "cpu/foreach_isa.h"

#include "cpu/roi_windows.h"

namespace cvops {
namespace {

template <typename T>
RoiTables<T> tables_of(const RoiSizes& s, double scale, const std::vector<RoiRow<T>>& rows, const RoiGroups& groups) {
  return RoiTables<T>(groups, s.pooled_h, s.pooled_w, [&](int64_t k) {
    const RoiRow<T>& roi = rows[k];
    return std::pair(PooledAxis<T>{roi.y1, roi.y2, T(scale), true, s.pooled_h, s.h},
        PooledAxis<T>{roi.x1, roi.x2, T(scale), true, s.pooled_w, s.w});
  });
}

std::tuple<Tensor, Tensor> roi_pool_cpu(
    const Tensor& input_in, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w) {
  const RoiSizes s = check_roi_pool(input_in, rois, scale, pooled_h, pooled_w);
  const bool last = follows_channels_last(input_in);
  const Tensor input = in_format(input_in, last);
  Tensor out = new_maps(input, s.k, s.c, pooled_h, pooled_w, input.scalar_type(), last);
  Tensor argmax = new_maps(input, s.k, s.c, pooled_h, pooled_w, ScalarType::Int, last);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "roi_pool", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = by_image("roi_pool", rows, s.n);
    if (out.numel() == 0) return;
    const RoiTables<T> tables = tables_of(s, scale, rows, groups);
    const MapsOf<const scalar_t> maps{s.n, s.c, {{input.const_data_ptr<scalar_t>(), s.h, s.w}}};
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    int32_t* index = argmax.mutable_data_ptr<int32_t>();
    const int64_t bins = s.bins();
    if (last) {
      torch::stable::parallel_for(0, s.k, 1, [&](int64_t from, int64_t until) {
        for (int64_t i = from; i < until; ++i) {
          const int64_t k = groups.order[i], at = k * bins * s.c;
          CVOPS_CALL_ISA(largest_of_bins, maps.plane(groups.map[k], 0), s.w * s.c, s.c, s.c, tables.y(k), tables.x(k),
              tables.y(k).taps, s.w, to + at, index + at, s.c);
        }
      });
      return;
    }
    // The tile of values, then as many indices.
    for_each_window<scalar_t>(maps, groups, tables, 2 * bins * kWindowChannels,
        [&](int64_t k, int64_t c, int64_t channels, const T* window, int64_t row, const AxisTaps<T>& y,
            const AxisTaps<T>& x, T* tile) {
          const int64_t at = (k * s.c + c) * bins;
          CVOPS_CALL_ISA(largest_of_window, window, row, channels, y, x, tables.y(k).taps, s.w, tile,
              reinterpret_cast<int32_t*>(tile + bins * kWindowChannels), to + at, index + at);
        });
  });
  return {out, argmax};
}

Tensor roi_pool_backward_cpu(const Tensor& grad_in, const Tensor& rois, const Tensor& argmax_in, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const RoiSizes s =
      check_roi_pool_backward(grad_in, rois, argmax_in, scale, pooled_h, pooled_w, batch, channels, height, width);
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_format(grad_in, last), argmax = in_format(argmax_in, last);
  Tensor out = new_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), last);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "roi_pool_backward", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = by_image("roi_pool_backward", rows, s.n);
    const RoiTables<T> tables = tables_of(s, scale, rows, groups);
    const MapsOf<scalar_t> maps{s.n, s.c, {{out.mutable_data_ptr<scalar_t>(), s.h, s.w}}};
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const int32_t* index = argmax.const_data_ptr<int32_t>();
    const int64_t bins = s.bins();
    for_each_band<scalar_t>(maps, last, groups, tables, 0,
        [&](int64_t k, int64_t c, int64_t some, int64_t first, int64_t until, T* window, T*) {
          const int64_t at = k * bins * s.c + (last ? c : c * bins);
          CVOPS_CALL_ISA(spread_to_largest, from + at, index + at, bins, last ? s.c : 1, last ? 1 : bins, some, first,
              until, s.w, window);
        });
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&cvops::roi_pool_cpu));
  m.impl("roi_pool_backward", TORCH_BOX(&cvops::roi_pool_backward_cpu));
}
