// CPU side of heatmap_peaks: threads over ranges of an image, the k best of each, merged; the gradient; registration.
// The heat map is read once; only elements above the k-th best of their range so far look at their window. Which peaks
// are the best does not depend on the ranges, since no two peaks are equal in score and index.
#include "ops/heatmap_peaks.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "cpu/fresh_memory.h"
#include "cpu/vec.h"

namespace cvops {
namespace {

template <typename T>
struct Peak {
  T score;
  int64_t index;  // in the image

  bool operator<(const Peak& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

// A walk over the elements [next, last) of an image.
template <typename T>
struct PeakScan {
  int64_t next, last;
  Peak<T>* found;
  int64_t count, capacity;
  T limit;  // what a peak must exceed
};

}  // namespace
}  // namespace cvops

#define CVOPS_BODY "cpu/heatmap_peaks-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kLeastRange = 1 << 15;  // elements
constexpr int64_t kSlack = 256;           // candidates beyond k before the best k are picked out

// The best k of `count` to the front, the k-th in its place; returns how many there are.
template <typename T>
int64_t keep_best(Peak<T>* found, int64_t count, int64_t k) {
  if (count < k || k == 0) return count;
  std::nth_element(found, found + k - 1, found + count);
  return k;
}

template <typename S>
class PeakFinder {
 public:
  using T = compute_t<S>;

  PeakFinder(const S* heatmap, const PeakSizes& s, int64_t kernel)
      : heatmap_(heatmap), s_(s), window_{s.height, s.width, kernel / 2}, most_(std::min(s.k, s.image())) {
    const int64_t wanted = 2 * torch::stable::get_num_threads() / s.batch;
    ranges_ = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(s.image() / kLeastRange, 1));
    range_ = (s.image() + ranges_ - 1) / ranges_;
    capacity_ = std::min(range_, std::max(2 * most_, most_ + kSlack));
    found_.reset(new Peak<T>[s.batch * ranges_ * capacity_]);
    counts_.resize(s.batch * ranges_);
  }

  void find() {
    torch::stable::parallel_for(0, s_.batch * ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const S* image = heatmap_ + i / ranges_ * s_.image();
        const int64_t first = i % ranges_ * range_;
        PeakScan<T> scan{std::min(first, s_.image()), std::min(first + range_, s_.image()),
            found_.get() + i * capacity_, 0, capacity_, -std::numeric_limits<T>::infinity()};
        while (scan.next < scan.last) {
          CVOPS_CALL_ISA(scan_peaks, image, window_, &scan);
          scan.count = keep_best(scan.found, scan.count, most_);
          if (scan.count == most_) scan.limit = scan.found[most_ - 1].score;
        }
        counts_[i] = scan.count;
      }
    });
  }

  // The best of an image in order, its first `count` elements.
  const Peak<T>* merge(int64_t image, int64_t* count) {
    Peak<T>* all = found_.get() + image * ranges_ * capacity_;
    int64_t total = counts_[image * ranges_];
    for (int64_t r = 1; r < ranges_; ++r) {
      const Peak<T>* from = all + r * capacity_;
      std::copy(from, from + counts_[image * ranges_ + r], all + total);
      total += counts_[image * ranges_ + r];
    }
    *count = keep_best(all, total, most_);
    std::sort(all, all + *count);
    return all;
  }

 private:
  const S* heatmap_;
  PeakSizes s_;
  PeakWindow window_;
  int64_t most_;  // peaks of an image
  int64_t ranges_, range_, capacity_;
  std::unique_ptr<Peak<T>[]> found_;  // [batch, ranges, capacity]
  std::vector<int64_t> counts_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> heatmap_peaks_cpu(const Tensor& heatmap_in, int64_t k, int64_t kernel) {
  const PeakSizes s = check_heatmap_peaks(heatmap_in, k, kernel);
  const Tensor heatmap = torch::stable::contiguous(heatmap_in);
  Tensor scores = torch::stable::new_empty(heatmap, {s.batch, k});
  Tensor classes = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  Tensor ys = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  Tensor xs = torch::stable::new_empty(heatmap, {s.batch, k}, ScalarType::Long);
  if (scores.numel() == 0) return {scores, classes, ys, xs};
  CVOPS_DISPATCH_FLOATS(heatmap.scalar_type(), "heatmap_peaks", [&] {
    const scalar_t* from = heatmap.const_data_ptr<scalar_t>();
    PeakFinder<scalar_t> finder(from, s, kernel);
    finder.find();
    scalar_t* score = scores.mutable_data_ptr<scalar_t>();
    int64_t* class_of = classes.mutable_data_ptr<int64_t>();
    int64_t *y = ys.mutable_data_ptr<int64_t>(), *x = xs.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, s.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        int64_t count = 0;
        const auto* best = finder.merge(image, &count);
        for (int64_t j = 0, at = image * k; j < k; ++j, ++at) {
          const int64_t index = j < count ? best[j].index : -1;
          const bool any = index >= 0;
          score[at] = any ? from[image * s.image() + index]
                          : static_cast<scalar_t>(-std::numeric_limits<compute_t<scalar_t>>::infinity());
          class_of[at] = any ? index / s.plane() : -1;
          y[at] = any ? index % s.plane() / s.width : -1;
          x[at] = any ? index % s.width : -1;
        }
      }
    });
  });
  return {scores, classes, ys, xs};
}

Tensor heatmap_peaks_backward_cpu(const Tensor& grad_in, const Tensor& classes_in, const Tensor& ys_in,
    const Tensor& xs_in, int64_t channels, int64_t height, int64_t width) {
  const PeakSizes s = check_heatmap_peaks_backward(grad_in, classes_in, ys_in, xs_in, channels, height, width);
  const Tensor grad = torch::stable::contiguous(grad_in), classes = torch::stable::contiguous(classes_in);
  const Tensor ys = torch::stable::contiguous(ys_in), xs = torch::stable::contiguous(xs_in);
  Tensor out = new_output(grad, {s.batch, channels, height, width});
  const int64_t each = s.image() * static_cast<int64_t>(out.element_size());
  char* bytes = static_cast<char*>(out.mutable_data_ptr());
  constexpr int64_t block = 1 << 18;
  torch::stable::parallel_for(0, (s.batch * each + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    std::memset(bytes + begin * block, 0, std::min(end * block, s.batch * each) - begin * block);
  });
  CVOPS_DISPATCH_FLOATS(grad.scalar_type(), "heatmap_peaks_backward", [&] {
    const scalar_t* from = grad.const_data_ptr<scalar_t>();
    const int64_t *c = classes.const_data_ptr<int64_t>(), *y = ys.const_data_ptr<int64_t>(),
                  *x = xs.const_data_ptr<int64_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < s.batch * s.k; ++i) {
      if (c[i] < 0 || c[i] >= channels || y[i] < 0 || y[i] >= height || x[i] < 0 || x[i] >= width) continue;
      to[((i / s.k * channels + c[i]) * height + y[i]) * width + x[i]] = from[i];
    }
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("heatmap_peaks", TORCH_BOX(&cvops::heatmap_peaks_cpu));
  m.impl("heatmap_peaks_backward", TORCH_BOX(&cvops::heatmap_peaks_backward_cpu));
}
