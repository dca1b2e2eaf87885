// COCO's rule (the reference is rleFrPoly of its mask API): vertices are rounded to a grid five times as fine, edges
// are walked on it one step at a time along their longer axis, and the mask changes along a column, at the row next
// below, wherever that walk crosses the column's middle. The walk itself is not needed: an edge crosses every column at
// most once, so the crossing is computed, and checked with the walk's own rounding. The cost is that of the columns,
// whatever the length of the edge, and the mask is the same.
#include "host/polygon.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace cvops::host {

namespace {

constexpr int64_t kFine = 5;       // fine steps in a pixel
constexpr int64_t kBefore = 2;     // the fine step before a pixel's middle: the walk crosses from 5x + 2 to 5x + 3
constexpr double kFarthest = 1e8;  // fine coordinates and their differences stay within 31 bits

struct Point {
  int64_t x, y;
};

// Rounds towards zero after adding a half, as the reference does, for negative numbers too.
int64_t rounded(double value) {
  return static_cast<int64_t>(value + 0.5);
}

int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b < 0);
}

class Crossings {
 public:
  explicit Crossings(Size size) : size_(size) {}

  void edge(Point a, Point b) {
    const int64_t dx = std::abs(b.x - a.x), dy = std::abs(b.y - a.y);
    if (dx == 0) return;
    if (dx >= dy) {
      a.x < b.x ? flat_edge(a, b) : flat_edge(b, a);
    } else {
      a.y < b.y ? steep_edge(a, b) : steep_edge(b, a);
    }
  }

  Runs runs() {
    std::sort(changes_.begin(), changes_.end());
    if (changes_.size() % 2) changes_.push_back(size_.pixels());
    Runs runs;
    for (size_t i = 0; i < changes_.size(); i += 2) append_run(runs, 0, {changes_[i], changes_[i + 1]});
    return runs;
  }

 private:
  // Columns whose middle lies between the fine positions `from` and `to` (a step from `to` - 1 to `to` counts).
  struct Columns {
    int64_t begin, end;
  };
  Columns columns(int64_t from, int64_t to) const {
    const int64_t first = floor_div(from - kBefore + kFine - 1, kFine), last = floor_div(to - 1 - kBefore, kFine);
    return {std::max<int64_t>(first, 0), std::min<int64_t>(last + 1, size_.width)};
  }

  // The walk crosses the column's middle in a step whose upper end is at fine row y.
  void cross(int64_t column, int64_t y) {
    const double row = (static_cast<double>(y) + 0.5) / kFine - 0.5;
    const double clamped = std::clamp(row, 0.0, static_cast<double>(size_.height));
    changes_.push_back(static_cast<uint32_t>(column * size_.height + static_cast<int64_t>(std::ceil(clamped))));
  }

  // One step right at a time: a.x < b.x.
  void flat_edge(Point a, Point b) {
    const double slope = static_cast<double>(b.y - a.y) / static_cast<double>(b.x - a.x);
    const auto y = [&](int64_t step) { return rounded(static_cast<double>(a.y) + slope * static_cast<double>(step)); };
    const auto [begin, end] = columns(a.x, b.x);
    for (int64_t column = begin; column < end; ++column) {
      const int64_t step = kFine * column + kBefore - a.x;
      cross(column, std::min(y(step), y(step + 1)));
    }
  }

  // One step down at a time: a.y < b.y. x is monotonic, so the step that crosses is near where the exact line does.
  void steep_edge(Point a, Point b) {
    const int64_t steps = b.y - a.y;
    const double slope = static_cast<double>(b.x - a.x) / static_cast<double>(steps);
    const auto x = [&](int64_t step) { return rounded(static_cast<double>(a.x) + slope * static_cast<double>(step)); };
    const auto [begin, end] = columns(std::min(x(0), x(steps)), std::max(x(0), x(steps)));
    for (int64_t column = begin; column < end; ++column) {
      const int64_t before = kFine * column + kBefore;
      const double exact = (static_cast<double>(before - a.x) + 0.5) / slope;
      int64_t step = std::clamp<int64_t>(static_cast<int64_t>(exact), 0, steps - 1);
      const auto passed = [&](int64_t s) { return slope > 0 ? x(s) > before : x(s) <= before; };
      while (passed(step) && step > 0) --step;
      while (!passed(step + 1) && step + 1 < steps) ++step;
      if (std::min(x(step), x(step + 1)) == before && x(step) != x(step + 1)) cross(column, a.y + step);
    }
  }

  Size size_;
  std::vector<uint32_t> changes_;  // pixels, in COCO's order, before which the mask changes
};

Point fine_point(const double* xy) {
  for (int i = 0; i < 2; ++i) {
    if (!(std::abs(xy[i]) <= kFarthest)) {
      throw std::invalid_argument(
          "polygon coordinates must be finite and within 1e8 pixels, got " + std::to_string(xy[i]));
    }
  }
  return {rounded(kFine * xy[0]), rounded(kFine * xy[1])};
}

}  // namespace

Runs polygon_runs(const double* xy, size_t points, Size size) {
  if (points < 2) throw std::invalid_argument("a polygon needs at least two points, got " + std::to_string(points));
  Crossings crossings(size);
  const Point first = fine_point(xy);
  Point last = first;
  for (size_t i = 1; i < points; ++i) {
    const Point next = fine_point(xy + 2 * i);
    crossings.edge(last, next);
    last = next;
  }
  crossings.edge(last, first);
  return size.pixels() == 0 ? Runs{} : crossings.runs();
}

}  // namespace cvops::host
