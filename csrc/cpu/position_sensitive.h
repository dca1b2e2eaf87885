// CPU side that ps_roi_align and ps_roi_pool share: memory formats and threads; they differ in their taps
// (cpu/roi_tables.h) only. Loops are in cpu/position_sensitive-inl.h. One translation unit includes it once.

#include "cpu/roi_tables.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/position_sensitive-inl.h"
#include "cpu/foreach_isa.h"

#include "cpu/roi_windows.h"

namespace cvops {
namespace {

// The input channel of every output, [k, channels, pooled_h, pooled_w].
Tensor channel_mapping_of(const RoiSizes& s, const Tensor& like, bool channels_last) {
  const int64_t bins = s.bins(), channels = s.c / bins;
  Tensor out = new_maps(like, s.k, channels, s.pooled_h, s.pooled_w, ScalarType::Int, channels_last);
  int32_t* to = out.mutable_data_ptr<int32_t>();
  for (int64_t k = 0; k < s.k; ++k) {
    for (int64_t i = 0; i < s.c; ++i) {
      *to++ = static_cast<int32_t>(channels_last ? i % channels * bins + i / channels : i);
    }
  }
  return out;
}

// tables(rows, groups) makes the taps.
template <typename Tables>
std::tuple<Tensor, Tensor> position_sensitive_cpu(
    const char* op, const RoiSizes& s, const Tensor& input_in, const Tensor& rois, const Tables& tables_of) {
  const bool last = follows_channels_last(input_in);
  const Tensor input = in_format(input_in, last);
  const int64_t bins = s.bins(), channels = s.c / bins;
  Tensor out = new_maps(input, s.k, channels, s.pooled_h, s.pooled_w, input.scalar_type(), last);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "position_sensitive", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = by_image(op, rows, s.n);
    if (out.numel() == 0) return;
    const RoiTables<T> tables = tables_of(rows, groups);
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    // channels_last: RoI by RoI, what its bins read of one pixel lies together. NCHW: plane by plane.
    torch::stable::parallel_for(0, last ? s.k * bins : s.n * s.c, 1, [&](int64_t first, int64_t until) {
      for (int64_t item = first; item < until; ++item) {
        const int64_t bin = item % bins, p = bin / s.pooled_w, q = bin % s.pooled_w;
        if (last) {
          const int64_t k = item / bins;
          CVOPS_CALL_ISA(average_positions, from + groups.map[k] * s.c * s.h * s.w + bin, s.w * s.c, s.c, bins,
              channels, tables.y(k), p, tables.x(k), q, to + item * channels, 1);
          continue;
        }
        const int64_t image = item / s.c, c = item % s.c;
        for (int64_t i = groups.first[image]; i < groups.first[image + 1]; ++i) {
          const int64_t k = groups.order[i];
          CVOPS_CALL_ISA(average_positions, from + item * s.h * s.w, s.w, 1, 0, 1, tables.y(k), p, tables.x(k), q,
              to + k * s.c + c, 1);
        }
      }
    });
  });
  return {out, channel_mapping_of(s, input, last)};
}

template <typename Tables>
Tensor position_sensitive_backward_cpu(
    const char* op, const RoiSizes& s, const Tensor& grad_in, const Tensor& rois, const Tables& tables_of) {
  const bool last = follows_channels_last(grad_in);
  const Tensor grad = in_format(grad_in, last);
  Tensor out = new_maps(grad, s.n, s.c, s.h, s.w, grad.scalar_type(), last);
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "position_sensitive_backward", [&] {
    using T = compute_t<scalar_t>;
    const std::vector<RoiRow<T>> rows = roi_rows<T>(rois);
    const RoiGroups groups = by_image(op, rows, s.n);
    const RoiTables<T> tables = tables_of(rows, groups);
    const MapsOf<scalar_t> maps{s.n, s.c, {{out.mutable_data_ptr<scalar_t>(), s.h, s.w}}};
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const int64_t bins = s.bins(), channels = s.c / bins;
    for_each_band<scalar_t>(maps, last, groups, tables, 0,
        [&](int64_t k, int64_t c, int64_t some, int64_t first, int64_t until, T* window, T*) {
          for (int64_t i = c; i < c + some; ++i) {
            const int64_t bin = i % bins;
            CVOPS_CALL_ISA(spread_position, from + k * s.c + (last ? bin * channels + i / bins : i), tables.y(k),
                bin / s.pooled_w, tables.x(k), bin % s.pooled_w, first, until, window + (i - c), s.w * kWindowChannels);
          }
        });
  });
  return out;
}

}  // namespace
}  // namespace cvops
