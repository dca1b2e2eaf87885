// CPU side of match_boxes: tiles of anchors as planes, threads over chunks of anchors, registration. Each chunk keeps
// its own best anchor per target; chunks are merged in order, so nothing depends on the threads. Memory is O(N + M).
#include "ops/match_boxes.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/box_planes.h"
#include "cpu/vec.h"

namespace cvops {
template <typename T>  // as wide as a coordinate
using match_index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
}

#define CVOPS_BODY "cpu/match_boxes-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kTile = 64;
constexpr int64_t kMostChunks = 32;          // of an image
constexpr int64_t kPairsPerChunk = 1 << 16;  // at least

template <typename T>
bool has_nan(const Box<T>& box) {
  return !(box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2);
}

template <typename In>
class Matcher {
 public:
  using T = compute_t<In>;

  Matcher(const In* anchors, int64_t n, const In* targets, const bool* valid, int64_t m, T low, T high)
      : anchors_(anchors), n_(n), m_(m), low_(low), high_(high), memory_(6 * m), best_(m, T(-1)), anchor_(m, -1) {
    targets_ = fill_planes(targets, m, false, memory_.data(), m);
    for (int64_t j = m - 1; j >= 0; --j) {
      if ((valid && !valid[j]) || has_nan(targets_.box(j))) {
        for (int64_t plane = 0; plane < 5; ++plane) memory_[plane * m + j] = std::numeric_limits<T>::quiet_NaN();
      } else {
        first_ = static_cast<match_index<T>>(j);
        best_[j] = T(0);
      }
    }
    const int64_t wanted = std::max<int64_t>(n * std::max<int64_t>(m, 1) / kPairsPerChunk, 1);
    const int64_t chunks = std::min({wanted, kMostChunks, std::max<int64_t>((n + kTile - 1) / kTile, 1)});
    per_chunk_ = std::max<int64_t>((n + chunks - 1) / chunks, 1);
    chunks_ = (n + per_chunk_ - 1) / per_chunk_;
  }

  // Fills matches with the best target of each anchor, -1 where there can be none, and ious with its IoU.
  void find(int64_t* matches, T* ious) {
    std::vector<T> best(chunks_ * m_, T(0));
    std::vector<int64_t> anchor(chunks_ * m_, -1);
    for_tiles([&](int64_t chunk, int64_t start, int64_t count, const BoxPlanes<T>& a) {
      T iou[kTile] = {};
      match_index<T> target[kTile];
      std::fill_n(target, kTile, first_);
      T* chunk_best = best.data() + chunk * m_;
      int64_t* chunk_anchor = anchor.data() + chunk * m_;
      CVOPS_CALL_ISA(match_rows, a, start, count, targets_, m_, iou, target, chunk_best, chunk_anchor);
      for (int64_t i = 0; i < count; ++i) {
        ious[start + i] = iou[i];
        matches[start + i] = has_nan(a.box(i)) ? -1 : target[i];
      }
    });
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t j = 0; j < m_; ++j) {
        if (best[chunk * m_ + j] <= best_[j]) continue;
        best_[j] = best[chunk * m_ + j];
        anchor_[j] = anchor[chunk * m_ + j];
      }
    }
  }

  // Applies the thresholds, except to the anchors that tie with the best IoU of a target.
  void classify(bool allow_low_quality, int64_t* matches, const T* ious) {
    for_tiles([&](int64_t, int64_t start, int64_t count, const BoxPlanes<T>& a) {
      uint8_t restored[kTile] = {};
      if (allow_low_quality) CVOPS_CALL_ISA(match_restore_rows, a, count, targets_, m_, best_.data(), restored);
      for (int64_t i = 0; i < count; ++i) {
        int64_t& match = matches[start + i];
        const T iou = ious[start + i];
        const int64_t judged = iou < low_ ? -1 : iou < high_ ? -2 : match;
        match = match < 0 || restored[i] ? match : judged;
      }
    });
  }

  const std::vector<int64_t>& best_anchor() const { return anchor_; }

 private:
  template <typename F>
  void for_tiles(const F& body) {
    torch::stable::parallel_for(0, chunks_, 1, [&](int64_t begin, int64_t end) {
      T planes[6 * kTile];
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t last = std::min((chunk + 1) * per_chunk_, n_);
        for (int64_t start = chunk * per_chunk_; start < last; start += kTile) {
          const int64_t count = std::min(kTile, last - start);
          if (count < kTile) std::fill_n(planes, 6 * kTile, std::numeric_limits<T>::quiet_NaN());
          body(chunk, start, count, fill_planes(anchors_ + 4 * start, count, false, planes, kTile));
        }
      }
    });
  }

  const In* anchors_;
  int64_t n_, m_, chunks_, per_chunk_;
  T low_, high_;
  std::vector<T> memory_;
  BoxPlanes<T> targets_;
  match_index<T> first_ = -1;  // lowest target that may match
  std::vector<T> best_;        // IoU per target; negative for those that take no part
  std::vector<int64_t> anchor_;
};

std::tuple<Tensor, Tensor, Tensor> match_boxes_cpu(const Tensor& anchors_in, const Tensor& targets_in,
    const std::optional<Tensor>& valid_in, double low, double high, bool allow_low_quality) {
  const MatchSizes s = check_match_boxes(anchors_in, targets_in, valid_in, low, high);
  const Tensor anchors = torch::stable::contiguous(anchors_in), targets = torch::stable::contiguous(targets_in);
  std::optional<Tensor> valid;
  if (valid_in) valid = torch::stable::contiguous(*valid_in);
  Tensor matches = torch::stable::new_empty(anchors, {s.batch, s.n}, ScalarType::Long);
  Tensor ious = torch::stable::new_empty(anchors, {s.batch, s.n}, compute_type(anchors.scalar_type()));
  Tensor best_anchor = torch::stable::new_empty(anchors, {s.batch, s.m}, ScalarType::Long);
  CVOPS_DISPATCH_FLOATS(anchors.scalar_type(), "match_boxes", [&] {
    using T = compute_t<scalar_t>;
    for (int64_t image = 0; image < s.batch; ++image) {
      const scalar_t* own = anchors.const_data_ptr<scalar_t>() + (s.shared_anchors ? 0 : image * s.n * 4);
      Matcher<scalar_t> matcher(own, s.n, targets.const_data_ptr<scalar_t>() + image * s.m * 4,
          valid ? valid->const_data_ptr<bool>() + image * s.m : nullptr, s.m, T(low), T(high));
      int64_t* match = matches.mutable_data_ptr<int64_t>() + image * s.n;
      T* iou = ious.mutable_data_ptr<T>() + image * s.n;
      matcher.find(match, iou);
      matcher.classify(allow_low_quality, match, iou);
      std::copy_n(matcher.best_anchor().data(), s.m, best_anchor.mutable_data_ptr<int64_t>() + image * s.m);
    }
  });
  return {matches, ious, best_anchor};
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("match_boxes", TORCH_BOX(&cvops::match_boxes_cpu));
}
