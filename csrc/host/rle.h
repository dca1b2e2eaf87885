// Binary masks as runs of ones, and COCO's text form of them. Polygons become runs in polygon.h.
//
// Pixels are numbered down the columns: pixel (y, x) of a mask of height h is x * h + y. COCO stores the lengths of the
// alternating runs of zeros and ones, zeros first; here a mask is the sorted, disjoint intervals of its ones, of which
// none is empty: half the numbers, and areas and intersections need no walk over the zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cvops::host {

struct Size {
  uint32_t height, width;
  uint32_t pixels() const { return height * width; }
};

// Throws std::invalid_argument unless both are at least 0 and the number of pixels fits 32 bits.
Size checked_size(int64_t height, int64_t width);

// Pixels [begin, end).
struct Run {
  uint32_t begin, end;
};
using Runs = std::vector<Run>;

// A mask that lies somewhere else.
struct RunsView {
  const Run* data;
  size_t size;
  const Run* begin() const { return data; }
  const Run* end() const { return data + size; }
};

inline RunsView view(const Runs& runs) {
  return {runs.data(), runs.size()};
}

// Appends a run that does not begin before the last one; empty ones vanish, touching and overlapping ones are joined.
// `first` is where the mask's own runs begin, for a vector that holds several masks.
void append_run(Runs& runs, size_t first, Run run);

// COCO's compressed counts: 6 bits a character from '0' on, of which 5 are payload, least significant first, and one
// says that more follow; from the fourth count on, the difference from the count two before. Appends to `runs`.
// Throws std::invalid_argument if the text is malformed or its counts do not add up to the number of pixels.
void parse_counts(std::string_view text, uint32_t pixels, Runs& runs);
std::string format_counts(RunsView runs, uint32_t pixels);

// COCO's uncompressed counts, with the same errors.
Runs from_counts(const int64_t* counts, size_t count, uint32_t pixels);

// mask [height, width] row-major, bytes 0 or 1.
Runs encode(const uint8_t* mask, Size size);
// Sets the ones of a mask of zeros.
void decode(RunsView runs, Size size, uint8_t* mask);

uint32_t area(RunsView runs);

// x, y, width, height of the smallest box around the ones; zeros for an empty mask.
struct Box {
  double x, y, width, height;
};
Box bounding_box(RunsView runs, uint32_t height);

uint32_t intersection_area(RunsView a, RunsView b);

Runs unite(const std::vector<Runs>& masks);
Runs intersect(RunsView a, RunsView b);

// Intersection over union, or over the detection's own size if the ground truth is a crowd region. The order of the
// operations is pycocotools', so that results agree to the last bit.
inline double box_iou(const Box& found, const Box& truth, bool crowd) {
  const auto min = [](double a, double b) { return a < b ? a : b; };
  const auto max = [](double a, double b) { return a > b ? a : b; };
  const double width = min(found.width + found.x, truth.width + truth.x) - max(found.x, truth.x);
  if (width <= 0) return 0;
  const double height = min(found.height + found.y, truth.height + truth.y) - max(found.y, truth.y);
  if (height <= 0) return 0;
  const double inner = width * height, area = found.width * found.height;
  return inner / (crowd ? area : area + truth.width * truth.height - inner);
}

inline double mask_iou(uint32_t inner, uint32_t found_area, uint32_t truth_area, bool crowd) {
  if (inner == 0) return 0;
  return static_cast<double>(inner) / static_cast<double>(crowd ? found_area : found_area + truth_area - inner);
}

}  // namespace cvops::host
