// CPU side of the NMS family: ranking, grouping, the greedy pass with its grid, threads, registration.
//
// Boxes are ranked by score (ties by lowest index, NaN dropped), then split by group id; each group is independent.
// The greedy pass needs, for every box it keeps, the later boxes that overlap it by more than t. In large groups they
// are looked up in a uniform grid over box centres: IoU > t bounds the distance of the centres (see reach()), so only
// the cells in that window are read, each row of them as one contiguous run. Memory is O(N); pairs far apart cost
// nothing, which is what makes 40,000 boxes take milliseconds.
#include "ops/nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/box_planes.h"
#include "cpu/radix_sort.h"

#define CVOPS_BODY "cpu/nms-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kGridFrom = 192;  // boxes in a group from which the grid pays
constexpr int64_t kBoxesPerCell = 4;
constexpr double kGridThreshold = 0.1;  // below, windows are so wide that the grid cannot help

// Candidates of one image: positions[] holds box indices, group by group (`starts` has their bounds), each group by
// descending score; rank[] is the place in the descending order of the whole image.
struct Ranking {
  std::vector<int32_t> by_score, positions, rank;
  std::vector<int64_t> starts;
};

// Splits by_score into groups of equal id, stably. Ids may be any int64.
void split_groups(Ranking& r, const int64_t* ids) {
  const int64_t n = r.by_score.size();
  std::vector<int32_t> ranks(n);
  std::iota(ranks.begin(), ranks.end(), 0);
  if (ids != nullptr && n > 0) {
    int64_t low = ids[r.by_score[0]], high = low;
    for (const int32_t p : r.by_score) low = std::min(low, ids[p]), high = std::max(high, ids[p]);
    const uint64_t span = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const auto sort_as = [&](auto zero) {
      std::vector<decltype(zero)> keys(n);
      for (int64_t k = 0; k < n; ++k) {
        keys[k] = static_cast<decltype(zero)>(static_cast<uint64_t>(ids[r.by_score[k]]) - static_cast<uint64_t>(low));
      }
      radix_sort(keys, ranks);
    };
    span <= std::numeric_limits<uint32_t>::max() ? sort_as(uint32_t{}) : sort_as(uint64_t{});
  }
  r.positions.resize(n);
  for (int64_t k = 0; k < n; ++k) r.positions[k] = r.by_score[ranks[k]];
  r.starts.assign(1, 0);
  for (int64_t k = 1; ids != nullptr && k < n; ++k) {
    if (ids[r.positions[k]] != ids[r.positions[k - 1]]) r.starts.push_back(k);
  }
  r.starts.push_back(n);
  r.rank = std::move(ranks);
}

template <typename T>
Ranking rank_candidates(
    const T* boxes, const T* scores, const int64_t* ids, int64_t n, std::optional<double> score_threshold) {
  Ranking r;
  r.by_score.reserve(n);
  std::vector<decltype(descending_key(T{}))> keys(n);
  for (int64_t i = 0; i < n; ++i) {
    const T* b = boxes + 4 * i;
    // A NaN coordinate or score makes its comparison false.
    const bool ordered = b[0] == b[0] && b[1] == b[1] && b[2] == b[2] && b[3] == b[3];
    const bool wanted = score_threshold ? scores[i] > *score_threshold : scores[i] == scores[i];
    if (!ordered || !wanted) continue;
    keys[i] = descending_key(scores[i]);
    r.by_score.push_back(static_cast<int32_t>(i));
  }
  radix_sort(keys, r.by_score);
  split_groups(r, ids);
  return r;
}

// Planes of the boxes at `positions`, in that order.
template <typename T>
struct GatheredPlanes {
  std::vector<T> memory;
  BoxPlanes<T> planes;

  GatheredPlanes(const T* boxes, const int32_t* positions, int64_t n) : memory(6 * n) {
    std::vector<T> rows(4 * n);
    for (int64_t k = 0; k < n; ++k) std::copy_n(boxes + 4 * int64_t{positions[k]}, 4, rows.data() + 4 * k);
    planes = fill_planes(rows.data(), n, false, memory.data(), n);
  }
};

// Two intervals of lengths w and v whose boxes have IoU > t overlap by more than t max(w, v), because the overlap in
// the other direction is at most the shorter side there. So v lies in (t w, w / t), and their centres differ by less
// than (w + v) / 2 - t max(w, v), which is largest at v = w or v = w / t. Returned per unit of w, with room for
// rounding.
double reach(double t) {
  return (1 - t) * std::max(1.0, 0.5 / t) + 1e-5 / t;
}

// Uniform grid over the centres of a group's boxes, which are stored cell by cell.
template <typename T>
class Grid {
 public:
  Grid(const BoxPlanes<T>& boxes, int64_t n, T threshold) : reach_(static_cast<T>(reach(threshold))) {
    std::vector<T> cx(n), cy(n);
    T low_x = std::numeric_limits<T>::infinity(), high_x = -low_x, low_y = low_x, high_y = -low_x;
    T largest = 0;
    std::vector<int32_t> cell(n, -1);
    int64_t proper = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!is_proper(boxes, i)) continue;
      cx[i] = (boxes.x1[i] + boxes.x2[i]) / 2;
      cy[i] = (boxes.y1[i] + boxes.y2[i]) / 2;
      low_x = std::min(low_x, cx[i]), high_x = std::max(high_x, cx[i]);
      low_y = std::min(low_y, cy[i]), high_y = std::max(high_y, cy[i]);
      largest = std::max(
          {largest, std::abs(boxes.x1[i]), std::abs(boxes.x2[i]), std::abs(boxes.y1[i]), std::abs(boxes.y2[i])});
      ++proper;
    }
    slot_.assign(n, -1);
    if (proper == 0) return;
    low_x_ = low_x, low_y_ = low_y;
    slack_ = 8 * std::numeric_limits<T>::epsilon() * largest;
    const double width = std::max(double(high_x) - low_x, 1e-30), height = std::max(double(high_y) - low_y, 1e-30);
    const double cells = std::max(1.0, double(proper) / kBoxesPerCell);
    const double side = std::sqrt(width * height / cells);
    columns_ = std::clamp<int64_t>(std::llround(width / std::max(side, width / cells)), 1, int64_t(cells));
    rows_ = std::clamp<int64_t>(std::llround(cells / columns_), 1, int64_t(cells));
    per_x_ = static_cast<T>(columns_ / width), per_y_ = static_cast<T>(rows_ / height);

    start_.assign(columns_ * rows_ + 1, 0);
    for (int64_t i = 0; i < n; ++i) {
      if (!is_proper(boxes, i)) continue;
      cell[i] = static_cast<int32_t>(row(cy[i]) * columns_ + column(cx[i]));
      ++start_[cell[i] + 1];
    }
    for (size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];
    std::vector<int32_t> next(start_.begin(), start_.end() - 1);
    memory_.resize(6 * proper);
    T* out = memory_.data();
    for (int64_t i = 0; i < n; ++i) {
      if (cell[i] < 0) continue;
      const int64_t s = slot_[i] = next[cell[i]]++;
      out[s] = boxes.x1[i], out[proper + s] = boxes.y1[i], out[2 * proper + s] = boxes.x2[i];
      out[3 * proper + s] = boxes.y2[i], out[4 * proper + s] = boxes.area[i];
    }
    planes_ = {out, out + proper, out + 2 * proper, out + 3 * proper, out + 4 * proper, out + 5 * proper};
    dead_.assign(proper, 0);
  }

  // Boxes without a finite positive width and height overlap nothing: never suppressed, never suppressing.
  static bool is_proper(const BoxPlanes<T>& b, int64_t i) {
    return b.x2[i] > b.x1[i] && b.y2[i] > b.y1[i] && std::isfinite(b.area[i]);
  }

  bool is_dead(int64_t i) const { return slot_[i] >= 0 && dead_[slot_[i]]; }

  void suppress(const BoxPlanes<T>& boxes, int64_t i, T threshold) {
    if (slot_[i] < 0) return;
    const Box<T> box = boxes.box(i);
    const T cx = (box.x1 + box.x2) / 2, cy = (box.y1 + box.y2) / 2;
    const T dx = (box.x2 - box.x1) * reach_ + slack_, dy = (box.y2 - box.y1) * reach_ + slack_;
    const int64_t left = column(cx - dx), right = column(cx + dx), bottom = row(cy + dy);
    for (int64_t y = row(cy - dy); y <= bottom; ++y) {
      const int64_t begin = start_[y * columns_ + left], end = start_[y * columns_ + right + 1];
      CVOPS_CALL_ISA(
          nms_suppress, box, boxes.area[i], planes_.from(begin), end - begin, threshold, dead_.data() + begin);
    }
  }

 private:
  // Monotone in the coordinate even after rounding, so a window never misses a box between its ends.
  int64_t column(T x) const { return index((x - low_x_) * per_x_, columns_); }
  int64_t row(T y) const { return index((y - low_y_) * per_y_, rows_); }
  static int64_t index(T at, int64_t count) {
    return at > T(0) ? static_cast<int64_t>(std::min(at, static_cast<T>(count - 1))) : 0;
  }

  T reach_, slack_ = 0, low_x_ = 0, low_y_ = 0, per_x_ = 0, per_y_ = 0;
  int64_t columns_ = 1, rows_ = 1;
  std::vector<int32_t> start_, slot_;  // first slot of every cell; slot of every box, -1 for an improper one
  std::vector<T> memory_;
  BoxPlanes<T> planes_{};
  std::vector<uint8_t> dead_;
};

// kept[k] for one group's boxes in score order; stops after `limit` of them.
template <typename T>
void greedy(const BoxPlanes<T>& boxes, int64_t n, T threshold, int64_t limit, uint8_t* kept) {
  int64_t count = 0;
  if (n >= kGridFrom && threshold >= kGridThreshold) {
    Grid<T> grid(boxes, n, threshold);
    for (int64_t i = 0; i < n && count < limit; ++i) {
      if (grid.is_dead(i)) continue;
      kept[i] = 1, ++count;
      grid.suppress(boxes, i, threshold);
    }
    return;
  }
  std::vector<uint8_t> dead(n, 0);
  for (int64_t i = 0; i < n && count < limit; ++i) {
    if (dead[i]) continue;
    kept[i] = 1, ++count;
    CVOPS_CALL_ISA(
        nms_suppress, boxes.box(i), boxes.area[i], boxes.from(i + 1), n - i - 1, threshold, dead.data() + i + 1);
  }
}

// Groups of an image are shared out so that each thread has some thousand boxes.
template <typename F>
void for_each_group(const Ranking& r, const F& f) {
  const int64_t groups = r.starts.size() - 1;
  const int64_t boxes_per_group = r.starts.back() / std::max<int64_t>(groups, 1) + 1;
  torch::stable::parallel_for(0, groups, 1024 / boxes_per_group + 1, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) f(r.starts[g], r.starts[g + 1] - r.starts[g]);
  });
}

// Indices of the kept boxes of one image by descending score, at most `limit`.
template <typename T>
std::vector<int32_t> nms_image(const T* boxes, const T* scores, const int64_t* ids, int64_t n, double iou_threshold,
    std::optional<double> score_threshold, int64_t limit) {
  const Ranking r = rank_candidates(boxes, scores, ids, n, score_threshold);
  std::vector<uint8_t> kept(r.by_score.size(), 0);
  const T threshold = round_down<T>(iou_threshold);
  for_each_group(r, [&](int64_t start, int64_t count) {
    const GatheredPlanes<T> group(boxes, r.positions.data() + start, count);
    std::vector<uint8_t> kept_here(count, 0);
    greedy(group.planes, count, threshold, limit, kept_here.data());
    for (int64_t k = 0; k < count; ++k) kept[r.rank[start + k]] = kept_here[k];
  });
  std::vector<int32_t> result;
  for (size_t k = 0; k < kept.size() && static_cast<int64_t>(result.size()) < limit; ++k) {
    if (kept[k]) result.push_back(r.by_score[k]);
  }
  return result;
}

// Contiguous tensors in one compute type; half types become float32 exactly.
struct Inputs {
  Tensor boxes, scores;
  std::optional<Tensor> idxs;

  Inputs(const Tensor& boxes_in, const Tensor& scores_in, const std::optional<Tensor>& idxs_in) {
    const bool wide = boxes_in.scalar_type() == ScalarType::Double || scores_in.scalar_type() == ScalarType::Double;
    const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
    boxes = torch::stable::contiguous(torch::stable::to(boxes_in, type));
    scores = torch::stable::contiguous(torch::stable::to(scores_in, type));
    if (idxs_in.has_value()) idxs = torch::stable::contiguous(*idxs_in);
  }

  const int64_t* ids() const { return idxs.has_value() ? idxs->const_data_ptr<int64_t>() : nullptr; }

  template <typename F>
  void dispatch(const F& f) const {
    boxes.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
  }
};

Tensor to_index_tensor(const Tensor& like, const std::vector<int32_t>& indices) {
  Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(indices.size())}, ScalarType::Long);
  std::copy(indices.begin(), indices.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double iou_threshold) {
  const int64_t n = check_nms("nms", boxes, scores, idxs, iou_threshold);
  const Inputs in(boxes, scores, idxs);
  std::vector<int32_t> kept;
  in.dispatch([&](auto zero) {
    using T = decltype(zero);
    const T *b = in.boxes.const_data_ptr<T>(), *s = in.scores.const_data_ptr<T>();
    kept = nms_image(b, s, in.ids(), n, iou_threshold, std::nullopt, n);
  });
  return to_index_tensor(boxes, kept);
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    double iou_threshold, int64_t max_output, std::optional<double> score_threshold) {
  const PaddedSizes s = check_nms_padded(boxes, scores, idxs, iou_threshold, max_output);
  const Inputs in(boxes, scores, idxs);
  Tensor indices = torch::stable::new_empty(boxes, {s.batch, max_output}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {s.batch}, ScalarType::Long);
  int64_t *slots = indices.mutable_data_ptr<int64_t>(), *count = counts.mutable_data_ptr<int64_t>();
  in.dispatch([&](auto zero) {
    using T = decltype(zero);
    const T *all_boxes = in.boxes.const_data_ptr<T>(), *all_scores = in.scores.const_data_ptr<T>();
    torch::stable::parallel_for(0, s.batch, 1, [&](int64_t first, int64_t last) {
      for (int64_t image = first; image < last; ++image) {
        const int64_t at = image * s.n;
        const auto kept = nms_image(all_boxes + 4 * at, all_scores + at, in.ids() ? in.ids() + at : nullptr, s.n,
            iou_threshold, score_threshold, max_output);
        std::copy(kept.begin(), kept.end(), slots + image * max_output);
        std::fill(slots + image * max_output + kept.size(), slots + (image + 1) * max_output, -1);
        count[image] = kept.size();
      }
    });
  });
  return {indices, counts};
}

// Soft-NMS of one group: repeatedly takes the best box and decays the rest. Fills decayed[k] in score order, and
// leaves -inf for boxes whose score fell to the threshold before they were taken.
template <typename T>
void soft_greedy(const BoxPlanes<T>& boxes, const T* scores, int64_t n, int64_t method, T sigma, T iou_threshold,
    T score_threshold, T* decayed) {
  std::vector<T> current(scores, scores + n), iou(n);
  for (int64_t k = 0; k < n; ++k) decayed[k] = -std::numeric_limits<T>::infinity();
  std::vector<uint8_t> taken(n, 0);
  for (int64_t round = 0; round < n; ++round) {
    int64_t best = -1;
    for (int64_t k = 0; k < n; ++k) {
      if (!taken[k] && current[k] > score_threshold && (best < 0 || current[k] > current[best])) best = k;
    }
    if (best < 0) return;
    taken[best] = 1;
    decayed[best] = current[best];
    CVOPS_CALL_ISA(nms_iou_row, boxes.box(best), boxes.area[best], boxes, n, iou.data());
    for (int64_t k = 0; k < n; ++k) {
      if (taken[k] || !(iou[k] > T(0))) continue;
      if (method == kGaussian) current[k] *= std::exp(-(iou[k] * iou[k]) / sigma);
      if (method == kLinear && iou[k] > iou_threshold) current[k] *= T(1) - iou[k];
    }
  }
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    int64_t method, double sigma, double iou_threshold, double score_threshold) {
  const int64_t n = check_nms("soft_nms", boxes, scores, idxs, iou_threshold);
  check_soft("soft_nms", method, sigma);
  const Inputs in(boxes, scores, idxs);
  Tensor indices, kept_scores;
  in.dispatch([&](auto zero) {
    using T = decltype(zero);
    const T *b = in.boxes.const_data_ptr<T>(), *s = in.scores.const_data_ptr<T>();
    const Ranking r = rank_candidates(b, s, in.ids(), n, score_threshold);
    std::vector<T> decayed(n, -std::numeric_limits<T>::infinity());  // by box
    for_each_group(r, [&](int64_t start, int64_t count) {
      const GatheredPlanes<T> group(b, r.positions.data() + start, count);
      std::vector<T> before(count), after(count);
      for (int64_t k = 0; k < count; ++k) before[k] = s[r.positions[start + k]];
      soft_greedy(group.planes, before.data(), count, method, T(sigma), round_down<T>(iou_threshold),
          T(score_threshold), after.data());
      for (int64_t k = 0; k < count; ++k) decayed[r.positions[start + k]] = after[k];
    });
    std::vector<decltype(descending_key(T{}))> keys(n);
    std::vector<int32_t> kept;
    for (const int32_t p : r.by_score) {
      if (decayed[p] == -std::numeric_limits<T>::infinity()) continue;
      keys[p] = descending_key(decayed[p]);
      kept.push_back(p);
    }
    std::sort(kept.begin(), kept.end());
    radix_sort(keys, kept);
    indices = to_index_tensor(boxes, kept);
    Tensor out = torch::stable::new_empty(in.scores, {static_cast<int64_t>(kept.size())});
    for (size_t k = 0; k < kept.size(); ++k) out.mutable_data_ptr<T>()[k] = decayed[kept[k]];
    kept_scores = out;
  });
  return {indices, torch::stable::to(kept_scores, scores.scalar_type())};
}

Tensor matrix_nms_cpu(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t method, double sigma) {
  const int64_t n = check_nms("matrix_nms", boxes, scores, idxs, 0);
  check_soft("matrix_nms", method, sigma);
  const Inputs in(boxes, scores, idxs);
  Tensor out = torch::stable::new_zeros(in.scores, {n});
  in.dispatch([&](auto zero) {
    using T = decltype(zero);
    const T *b = in.boxes.const_data_ptr<T>(), *s = in.scores.const_data_ptr<T>();
    T* decayed = out.mutable_data_ptr<T>();
    const Ranking r = rank_candidates(b, s, in.ids(), n, std::nullopt);
    for (size_t g = 0; g + 1 < r.starts.size(); ++g) {
      const int64_t start = r.starts[g], count = r.starts[g + 1] - start;
      const GatheredPlanes<T> group(b, r.positions.data() + start, count);
      const BoxPlanes<T>& p = group.planes;
      std::vector<T> covered(count);
      torch::stable::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          CVOPS_CALL_ISA(nms_largest_iou, p.box(k), p.area[k], p, k, &covered[k]);
        }
      });
      torch::stable::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          T least;
          CVOPS_CALL_ISA(nms_smallest_decay, method == kGaussian, p.box(k), p.area[k], p, covered.data(), k, &least);
          const int32_t at = r.positions[start + k];
          decayed[at] = s[at] * (method == kGaussian ? std::exp(T(sigma) * least) : least);
        }
      });
    }
  });
  return torch::stable::to(out, scores.scalar_type());
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("nms", TORCH_BOX(&cvops::nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&cvops::nms_padded_cpu));
  m.impl("soft_nms", TORCH_BOX(&cvops::soft_nms_cpu));
  m.impl("matrix_nms", TORCH_BOX(&cvops::matrix_nms_cpu));
}
