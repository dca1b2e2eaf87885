// CPU side of roi_align and multiscale_roi_align: which RoIs go with which part of which map, memory formats, threads,
// registration. Loops are in cpu/roi_align-inl.h.
#include "ops/roi_align.h"

#include <algorithm>

#include "cpu/roi_maps.h"
#include "cpu/roi_tables.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/roi_align-inl.h"
#include "cpu/foreach_isa.h"

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
    return std::pair(SampledAxis<T>{roi_axis(roi.y1, roi.y2, scale, offset, !job.aligned, job.pooled_h,
                                        job.sampling_ratio),
                         map.h},
        SampledAxis<T>{
            roi_axis(roi.x1, roi.x2, scale, offset, !job.aligned, job.pooled_w, job.sampling_ratio), map.w});
  });
}

// A channels_last map is read where it lies, a chunk of channels at a time, so that what neighbouring RoIs share of it
// stays in the cache.
template <typename S, typename T>
void forward_nhwc(const RoiAlign& job, const std::vector<Tensor>& features, const RoiGroups& groups,
    const RoiTables<T>& tables, S* out) {
  constexpr int64_t chunk = 256 / sizeof(S);
  const int64_t chunks = ceil_div(job.c, chunk), rois = static_cast<int64_t>(groups.order.size());
  torch::stable::parallel_for(0, chunks * rois, 4, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t c = item / rois * chunk, k = groups.order[item % rois];
      const int64_t map = groups.map[k], level = map / job.n, w = job.maps[level].w;
      const S* from = features[level].const_data_ptr<S>() + map % job.n * job.maps[level].h * w * job.c + c;
      CVOPS_CALL_ISA(average_bins, from, w * job.c, job.c, std::min(chunk, job.c - c), tables.y(k), tables.x(k),
          out + k * job.bins() * job.c + c, job.c);
    }
  });
}

// RoIs order[first] to order[last - 1] of one map, and 16 channels. `whole`: the map is packed once for all of them,
// else the rows and columns of each RoI are.
struct WindowTask {
  int64_t map, block, first, last;
  bool whole;
};

template <typename T>
std::vector<WindowTask> window_tasks(
    const RoiAlign& job, const RoiGroups& groups, const RoiTables<T>& tables, int64_t* window, int64_t* taps) {
  const int64_t blocks = ceil_div(job.c, kWindowChannels), threads = torch::stable::get_num_threads();
  std::vector<WindowTask> tasks;
  for (size_t map = 0; map + 1 < groups.first.size(); ++map) {
    const int64_t first = groups.first[map], last = groups.first[map + 1];
    const RoiMap& of = job.maps[map / job.n];
    int64_t pixels = 0, most = 0;
    for (int64_t i = first; i < last; ++i) {
      const auto y = tables.y(groups.order[i]), x = tables.x(groups.order[i]);
      pixels += y.count() * (x.high - x.low), most = std::max(most, y.count() * (x.high - x.low));
      *taps = std::max(*taps, y.count());
    }
    const int64_t all = of.h * of.w;
    const bool whole =
        pixels > all && all * kWindowChannels * static_cast<int64_t>(sizeof(T)) <= kMostWindowBytes;
    *window = std::max(*window, (whole ? all : most) * kWindowChannels);
    const int64_t parts = whole ? ceil_div(2 * threads, blocks * job.n) : ceil_div(last - first, 8);
    const int64_t part = std::max<int64_t>(ceil_div(last - first, parts > 0 ? parts : 1), 1);
    for (int64_t i = first; i < last; i += part) {
      tasks.push_back({static_cast<int64_t>(map), 0, i, std::min(i + part, last), whole});
    }
  }
  std::vector<WindowTask> all;
  for (int64_t block = 0; block < blocks; ++block) {
    for (WindowTask task : tasks) {
      task.block = block;
      all.push_back(task);
    }
  }
  return all;
}

template <typename S, typename T>
void forward_nchw(const RoiAlign& job, const std::vector<Tensor>& features, const RoiGroups& groups,
    const RoiTables<T>& tables, S* out) {
  int64_t window_size = 0, most_taps = 0;
  const std::vector<WindowTask> tasks = window_tasks(job, groups, tables, &window_size, &most_taps);
  Scratch<T> windows(window_size), tiles(job.bins() * kWindowChannels);
  Scratch<RoiTap<T>> tap_rows(most_taps);
  torch::stable::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t from, int64_t to) {
    T *window = windows.take(), *tile = tiles.take();
    RoiTap<T>* taps = tap_rows.take();
    for (int64_t number = from; number < to; ++number) {
      const WindowTask& task = tasks[number];
      const RoiMap& of = job.maps[task.map / job.n];
      const int64_t c = task.block * kWindowChannels, channels = std::min(kWindowChannels, job.c - c);
      const S* map = features[task.map / job.n].const_data_ptr<S>() + (task.map % job.n * job.c + c) * of.h * of.w;
      if (task.whole) CVOPS_CALL_ISA(pack_window, map, of.h * of.w, channels, of.h * of.w, window);
      for (int64_t i = task.first; i < task.last; ++i) {
        const int64_t k = groups.order[i];
        AxisTaps<T> y = tables.y(k);
        const AxisTaps<T> x = tables.x(k);
        int64_t row = of.w * kWindowChannels, left = 0;
        if (!task.whole) {  // one row of the window per tap
          left = x.low, row = (x.high - x.low) * kWindowChannels;
          for (int64_t t = 0; t < y.count(); ++t) {
            CVOPS_CALL_ISA(pack_window, map + y.taps[t].at * of.w + left, of.h * of.w, channels, x.high - x.low,
                window + t * row);
            taps[t] = {static_cast<int32_t>(t), y.taps[t].weight};
          }
          y.taps = taps;
        }
        CVOPS_CALL_ISA(average_window, window - left * kWindowChannels, row, channels, y, x, tile,
            out + (k * job.c + c) * job.bins());
      }
    }
  });
}

Tensor forward(const char* op, const RoiAlign& job, const std::vector<Tensor>& features_in, const Tensor& rois) {
  const ScalarType type = features_in[0].scalar_type();
  const bool last = roi_channels_last(features_in[0]);
  std::vector<Tensor> features;
  for (const Tensor& feature : features_in) features.push_back(in_format(feature, last));
  Tensor out = new_maps(rois, job.k, job.c, job.pooled_h, job.pooled_w, type, last);
  CVOPS_DISPATCH_FLOATS(type, "roi_align", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = grouped(op, job, rows);
    if (out.numel() == 0) return;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    for (int64_t k = 0; k < job.k; ++k) {  // of no level
      if (groups.map[k] < 0) std::fill_n(to + k * job.c * job.bins(), job.c * job.bins(), scalar_t(0));
    }
    const RoiTables<T> tables = tables_of(job, rows, groups);
    if (last) {
      forward_nhwc<scalar_t, T>(job, features, groups, tables, to);
    } else {
      forward_nchw<scalar_t, T>(job, features, groups, tables, to);
    }
  });
  return out;
}

std::vector<Tensor> backward(const char* op, const RoiAlign& job, const Tensor& grad_in, const Tensor& rois) {
  const ScalarType type = grad_in.scalar_type();
  const bool last = roi_channels_last(grad_in);
  const Tensor grad = in_format(grad_in, last);
  std::vector<Tensor> out;
  for (const RoiMap& map : job.maps) out.push_back(new_maps(grad, job.n, job.c, map.h, map.w, type, last));
  CVOPS_DISPATCH_FLOATS(type, "roi_align", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = grouped(op, job, rows);
    const RoiTables<T> tables = tables_of(job, rows, groups);
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const int64_t blocks = ceil_div(job.c, kWindowChannels), bins = job.bins();
    for (size_t level = 0; level < job.maps.size(); ++level) {
      const RoiMap& of = job.maps[level];
      if (out[level].numel() == 0) continue;
      scalar_t* to = out[level].mutable_data_ptr<scalar_t>();
      const Bands bands(of.h, of.w, sizeof(T));
      Scratch<T> windows(bands.rows * of.w * kWindowChannels), tiles(job.pooled_w * kWindowChannels);
      torch::stable::parallel_for(0, job.n * blocks * bands.count, 1, [&](int64_t begin, int64_t end) {
        T *window = windows.take(), *tile = tiles.take();
        for (int64_t item = begin; item < end; ++item) {
          const int64_t image = item / (blocks * bands.count), block = item / bands.count % blocks;
          const int64_t c = block * kWindowChannels, channels = std::min(kWindowChannels, job.c - c);
          const int64_t first = item % bands.count * bands.rows, until = std::min(first + bands.rows, of.h);
          const int64_t map = static_cast<int64_t>(level) * job.n + image, pixels = (until - first) * of.w;
          std::fill_n(window, pixels * kWindowChannels, T(0));
          for (int64_t i = groups.first[map]; i < groups.first[map + 1]; ++i) {
            const int64_t k = groups.order[i];
            const AxisTaps<T> y = tables.y(k);
            if (y.low >= until || y.high <= first) continue;
            const scalar_t* of_roi = from + k * bins * job.c + (last ? c : c * bins);
            CVOPS_CALL_ISA(spread_bins, of_roi, last ? job.c : 1, last ? 1 : bins, channels, y, tables.x(k), first,
                until, window, of.w * kWindowChannels, tile);
          }
          if (last) {
            CVOPS_CALL_ISA(copy_window<true>, static_cast<const T*>(window), channels, pixels,
                to + (image * of.h + first) * of.w * job.c + c, job.c);
          } else {
            CVOPS_CALL_ISA(unpack_window<true>, static_cast<const T*>(window), channels, pixels,
                to + ((image * job.c + c) * of.h + first) * of.w, of.h * of.w);
          }
        }
      });
    }
  });
  return out;
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
