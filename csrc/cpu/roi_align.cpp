// CPU side of roi_align and multiscale_roi_align: which RoIs go with which part of which map, memory formats, threads,
// registration. Loops are in cpu/roi_align-inl.h.
#include "ops/roi_align.h"

#include "cpu/roi_tables.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/roi_align-inl.h"
#include "cpu/foreach_isa.h"

#include "cpu/roi_windows.h"

namespace cvops {
namespace {

// Map `level * n + image` of every RoI.
template <typename T>
RoiGroups grouped(const char* op, const RoiAlign& job, const std::vector<RoiRow<T>>& rows) {
  std::vector<int64_t> map(job.k);
  for (int64_t k = 0; k < job.k; ++k) {
    const int64_t image = checked_image(op, rows, k, job.n);
    const int64_t level = roi_level(rows[k].x1, rows[k].y1, rows[k].x2, rows[k].y2, job.levels);
    map[k] = level < 0 ? -1 : level * job.n + image;
  }
  return RoiGroups(std::move(map), static_cast<int64_t>(job.maps.size()) * job.n);
}

template <typename T>
RoiTables<T> tables_of(const RoiAlign& job, const std::vector<RoiRow<T>>& rows, const RoiGroups& groups) {
  return RoiTables<T>(groups, job.pooled_h, job.pooled_w, [&](int64_t k) {
    const RoiRow<T>& roi = rows[k];
    const RoiMap& map = job.maps[groups.map[k] / job.n];
    const T scale = T(map.scale), offset = job.aligned ? T(0.5) : T(0);
    return std::pair(
        SampledAxis<T>{roi_axis(roi.y1, roi.y2, scale, offset, !job.aligned, job.pooled_h, job.sampling_ratio), map.h},
        SampledAxis<T>{roi_axis(roi.x1, roi.x2, scale, offset, !job.aligned, job.pooled_w, job.sampling_ratio), map.w});
  });
}

// A channels_last map is read where it lies, a chunk of channels at a time and from top to bottom, so that what
// neighbouring RoIs share of it stays in the cache.
template <typename S, typename T>
void forward_nhwc(
    const MapsOf<const S>& maps, const RoiGroups& groups, const RoiTables<T>& tables, int64_t bins, S* out) {
  constexpr int64_t chunk = 512 / sizeof(S);
  const int64_t chunks = ceil_div(maps.c, chunk), rois = static_cast<int64_t>(groups.order.size());
  std::vector<int64_t> order = groups.order;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const auto at = [&](int64_t k) { return std::pair(groups.map[k], tables.y(k).low + tables.y(k).high); };
    return at(a) < at(b);
  });
  torch::stable::parallel_for(0, chunks * rois, 4, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t c = item / rois * chunk, k = order[item % rois];
      const S* map = maps.plane(groups.map[k], 0) + c;
      CVOPS_CALL_ISA(average_bins, map, maps.level(groups.map[k]).w * maps.c, maps.c, std::min(chunk, maps.c - c),
          tables.y(k), tables.x(k), out + k * bins * maps.c + c, maps.c);
    }
  });
}

Tensor forward(const char* op, const RoiAlign& job, const std::vector<Tensor>& features_in, const Tensor& rois) {
  const ScalarType type = features_in[0].scalar_type();
  const bool last = follows_channels_last(features_in[0]);
  std::vector<Tensor> features;
  for (const Tensor& feature : features_in) features.push_back(in_format(feature, last));
  Tensor out = new_maps(features[0], job.k, job.c, job.pooled_h, job.pooled_w, type, last);
  CVOPS_DISPATCH_FLOATS(type, "roi_align", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = grouped(op, job, rows);
    if (out.numel() == 0) return;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const int64_t bins = job.bins();
    for (int64_t k = 0; k < job.k; ++k) {  // of no level
      if (groups.map[k] < 0) std::fill_n(to + k * job.c * bins, job.c * bins, scalar_t(0));
    }
    const RoiTables<T> tables = tables_of(job, rows, groups);
    MapsOf<const scalar_t> maps{job.n, job.c, {}};
    for (size_t i = 0; i < features.size(); ++i) {
      maps.levels.push_back({features[i].const_data_ptr<scalar_t>(), job.maps[i].h, job.maps[i].w});
    }
    if (last) return forward_nhwc<scalar_t, T>(maps, groups, tables, bins, to);
    for_each_window<scalar_t>(maps, groups, tables, bins * kWindowChannels,
        [&](int64_t k, int64_t c, int64_t channels, const T* window, int64_t row, const AxisTaps<T>& y,
            const AxisTaps<T>& x, T* tile) {
          CVOPS_CALL_ISA(average_window, window, row, channels, y, x, tile, to + (k * job.c + c) * bins);
        });
  });
  return out;
}

std::vector<Tensor> backward(const char* op, const RoiAlign& job, const Tensor& grad_in, const Tensor& rois) {
  const ScalarType type = grad_in.scalar_type();
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_format(grad_in, last);
  std::vector<Tensor> outs;
  for (const RoiMap& map : job.maps) outs.push_back(new_maps(grad, job.n, job.c, map.h, map.w, type, last));
  CVOPS_DISPATCH_FLOATS(type, "roi_align_backward", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = grouped(op, job, rows);
    const RoiTables<T> tables = tables_of(job, rows, groups);
    MapsOf<scalar_t> maps{job.n, job.c, {}};
    for (size_t i = 0; i < outs.size(); ++i) {
      maps.levels.push_back({outs[i].mutable_data_ptr<scalar_t>(), job.maps[i].h, job.maps[i].w});
    }
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const int64_t bins = job.bins();
    for_each_band<scalar_t>(maps, last, groups, tables, job.pooled_w * kWindowChannels,
        [&](int64_t k, int64_t c, int64_t channels, int64_t first, int64_t until, T* window, T* tile) {
          const scalar_t* of_roi = from + k * bins * job.c + (last ? c : c * bins);
          CVOPS_CALL_ISA(spread_bins, of_roi, last ? job.c : 1, last ? 1 : bins, channels, tables.y(k), tables.x(k),
              first, until, window, maps.level(groups.map[k]).w * kWindowChannels, tile);
        });
  });
  return outs;
}

Tensor roi_align_cpu(const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w,
    int64_t sampling_ratio, bool aligned) {
  const RoiAlign job = check_roi_align(input, rois, scale, pooled_h, pooled_w, sampling_ratio, aligned);
  return forward("roi_align", job, {input}, rois);
}

Tensor roi_align_backward_cpu(const Tensor& grad, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w,
    int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio, bool aligned) {
  const RoiAlign job = check_roi_align_backward(
      grad, rois, scale, pooled_h, pooled_w, batch, channels, height, width, sampling_ratio, aligned);
  return backward("roi_align_backward", job, grad, rois)[0];
}

Tensor multiscale_roi_align_cpu(std::vector<Tensor> features, const Tensor& rois, std::vector<double> scales,
    int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned, int64_t canonical_scale,
    int64_t canonical_level) {
  const RoiAlign job = check_multiscale_roi_align(
      features, rois, scales, pooled_h, pooled_w, sampling_ratio, aligned, canonical_scale, canonical_level);
  return forward("multiscale_roi_align", job, features, rois);
}

std::vector<Tensor> multiscale_roi_align_backward_cpu(const Tensor& grad, const Tensor& rois,
    std::vector<double> scales, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned,
    int64_t canonical_scale, int64_t canonical_level, int64_t batch, std::vector<int64_t> heights,
    std::vector<int64_t> widths) {
  const RoiAlign job = check_multiscale_roi_align_backward(grad, rois, scales, pooled_h, pooled_w, sampling_ratio,
      aligned, canonical_scale, canonical_level, batch, heights, widths);
  return backward("multiscale_roi_align_backward", job, grad, rois);
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&cvops::roi_align_cpu));
  m.impl("roi_align_backward", TORCH_BOX(&cvops::roi_align_backward_cpu));
  m.impl("multiscale_roi_align", TORCH_BOX(&cvops::multiscale_roi_align_cpu));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&cvops::multiscale_roi_align_backward_cpu));
}
