// What the CPU kernels of the RoI ops work from: per RoI and axis, the pixels that each bin reads and their weights
// ("taps"), computed once and used for all channels, since every RoI op averages over a product of two axes; and the
// RoIs grouped by the map (image, level) that they lie on. Geometry is in ops/roi_geometry.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "ops/roi.h"
#include "ops/roi_geometry.h"

namespace cvops {

template <typename T>
struct RoiTap {
  int32_t at;
  T weight;
};

// Bin p reads taps[begin[p]] to taps[begin[p + 1] - 1]; pixels of one axis lie in [low, high).
template <typename T>
struct AxisTaps {
  const int32_t* begin;
  const RoiTap<T>* taps;
  int64_t bins;
  int64_t low, high;
  int64_t count() const { return begin[bins]; }
};

// Samples of a bin, each spread over two pixels; a pixel that neighbouring samples share is one tap. Weights sum to 1
// if the bin lies on the map.
template <typename T>
struct SampledAxis {
  RoiAxis<T> axis;
  int64_t size;

  int64_t most(int64_t p) const {
    const IndexRange samples = roi_samples(axis, p, size);
    if (samples.first >= samples.last) return 0;
    const auto a = roi_pixels(roi_sample(axis, p, samples.first), size);
    const auto b = roi_pixels(roi_sample(axis, p, samples.last - 1), size);
    return std::min(2 * (samples.last - samples.first), std::max(a.high, b.high) - std::min(a.low, b.low) + 1);
  }

  int64_t fill(int64_t p, RoiTap<T>* taps) const {
    const IndexRange samples = roi_samples(axis, p, size);
    int64_t count = 0;
    const auto add = [&](int64_t at, T weight) {
      for (int64_t i = count - 1; i >= 0 && i >= count - 3; --i) {
        if (taps[i].at == at) {
          taps[i].weight += weight;
          return;
        }
      }
      taps[count++] = {static_cast<int32_t>(at), weight};
    };
    for (int64_t i = samples.first; i < samples.last; ++i) {
      const auto pixels = roi_pixels(roi_sample(axis, p, i), size);
      add(pixels.low, pixels.low_weight);
      add(pixels.high, pixels.high_weight);
    }
    for (int64_t i = 0; i < count; ++i) taps[i].weight /= T(axis.grid);
    return count;
  }
};

// Whole pixels of a bin with equal weights: their mean.
template <typename T>
struct PooledAxis {
  T from, to, scale;
  bool inclusive;
  int64_t pooled, size;

  IndexRange bin(int64_t p) const { return roi_pool_bin(from, to, scale, inclusive, pooled, p, size); }
  int64_t most(int64_t p) const { return std::max<int64_t>(bin(p).last - bin(p).first, 0); }
  int64_t fill(int64_t p, RoiTap<T>* taps) const {
    const IndexRange pixels = bin(p);
    for (int64_t at = pixels.first; at < pixels.last; ++at) {
      taps[at - pixels.first] = {static_cast<int32_t>(at), T(1) / T(pixels.last - pixels.first)};
    }
    return std::max<int64_t>(pixels.last - pixels.first, 0);
  }
};

// The RoIs [k, 5] of a call in the compute type.
template <typename T>
struct RoiRow {
  T image, x1, y1, x2, y2;
};

template <typename T>
std::vector<RoiRow<T>> roi_rows(const Tensor& rois_in) {
  const Tensor rois = torch::stable::to(
      torch::stable::contiguous(rois_in), std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
  const T* from = rois.template const_data_ptr<T>();
  std::vector<RoiRow<T>> rows(rois.size(0));
  for (size_t k = 0; k < rows.size(); ++k, from += 5) rows[k] = {from[0], from[1], from[2], from[3], from[4]};
  return rows;
}

template <typename T>
int64_t checked_image(const char* op, const std::vector<RoiRow<T>>& rows, int64_t k, int64_t images) {
  const int64_t image = roi_image(rows[k].image, images);
  CVOPS_CHECK(image >= 0, op, ": rois[", k, "] names image ", rows[k].image, ", but there are ", images);
  return image;
}

// RoIs grouped by map: those of map m are order[first[m]] to order[first[m + 1] - 1], ascending; RoIs of map -1 are in
// no group.
struct RoiGroups {
  std::vector<int64_t> map, order, first;

  RoiGroups(std::vector<int64_t> map_of, int64_t maps) : map(std::move(map_of)), first(maps + 1) {
    for (int64_t m : map) {
      if (m >= 0) ++first[m + 1];
    }
    for (int64_t m = 0; m < maps; ++m) first[m + 1] += first[m];
    order.resize(first[maps]);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (size_t k = 0; k < map.size(); ++k) {
      if (map[k] >= 0) order[next[map[k]]++] = static_cast<int64_t>(k);
    }
  }
};

// RoIs of one level of maps. Throws on one that names no image.
template <typename T>
RoiGroups by_image(const char* op, const std::vector<RoiRow<T>>& rows, int64_t images) {
  std::vector<int64_t> map(rows.size());
  for (size_t k = 0; k < rows.size(); ++k) map[k] = checked_image(op, rows, static_cast<int64_t>(k), images);
  return RoiGroups(std::move(map), images);
}

// Taps of all RoIs. `axes(k)` gives the two axes of RoI k (of one of the types above), vertical first; it is not asked
// about RoIs of map -1, which have no taps.
template <typename T>
class RoiTables {
 public:
  template <typename Axes>
  RoiTables(const RoiGroups& groups, int64_t pooled_h, int64_t pooled_w, const Axes& axes)
      : pooled_h_(pooled_h), pooled_w_(pooled_w), pitch_(pooled_h + pooled_w + 2) {
    const auto k = static_cast<int64_t>(groups.map.size());
    begins_.assign(k * pitch_, 0);
    first_.assign(2 * k + 1, 0);
    bounds_.assign(4 * k, 0);
    constexpr int64_t grain = 64;
    torch::stable::parallel_for(0, k, grain, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (groups.map[i] < 0) continue;
        const auto [y, x] = axes(i);
        for (int64_t p = 0; p < pooled_h; ++p) first_[2 * i + 1] += y.most(p);
        for (int64_t p = 0; p < pooled_w; ++p) first_[2 * i + 2] += x.most(p);
      }
    });
    for (int64_t i = 0; i < 2 * k; ++i) first_[i + 1] += first_[i];
    taps_.reset(new RoiTap<T>[first_[2 * k] + 1]);
    torch::stable::parallel_for(0, k, grain, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (groups.map[i] < 0) continue;
        const auto [y, x] = axes(i);
        fill(y, pooled_h, first_[2 * i], begins_.data() + i * pitch_, bounds_.data() + 4 * i);
        fill(x, pooled_w, first_[2 * i + 1], begins_.data() + i * pitch_ + pooled_h + 1, bounds_.data() + 4 * i + 2);
      }
    });
  }

  AxisTaps<T> y(int64_t k) const {
    return {begins_.data() + k * pitch_, taps_.get() + first_[2 * k], pooled_h_, bounds_[4 * k], bounds_[4 * k + 1]};
  }
  AxisTaps<T> x(int64_t k) const {
    return {begins_.data() + k * pitch_ + pooled_h_ + 1, taps_.get() + first_[2 * k + 1], pooled_w_, bounds_[4 * k + 2],
        bounds_[4 * k + 3]};
  }

 private:
  template <typename Axis>
  void fill(const Axis& axis, int64_t bins, int64_t first, int32_t* begin, int64_t* bounds) {
    RoiTap<T>* taps = taps_.get() + first;
    int64_t count = 0;
    for (int64_t p = 0; p < bins; ++p) {
      count += axis.fill(p, taps + count);
      begin[p + 1] = static_cast<int32_t>(count);
    }
    if (count == 0) return;
    bounds[0] = std::numeric_limits<int64_t>::max();
    for (int64_t i = 0; i < count; ++i) {
      bounds[0] = std::min<int64_t>(bounds[0], taps[i].at);
      bounds[1] = std::max<int64_t>(bounds[1], taps[i].at + 1);
    }
  }

  int64_t pooled_h_, pooled_w_, pitch_;
  std::vector<int32_t> begins_;          // [k, pooled_h + 1 + pooled_w + 1]
  std::vector<int64_t> first_, bounds_;  // [k, 2], [k, 2, 2]
  std::unique_ptr<RoiTap<T>[]> taps_;
};

}  // namespace cvops
