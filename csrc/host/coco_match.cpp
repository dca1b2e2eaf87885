#include "host/coco_match.h"

#include <algorithm>

namespace cvops::host {

CellMatcher::CellMatcher(const Settings& settings, const GroundTruth& truth, const Detections& found, const Size* sizes)
    : settings_(settings), truth_(truth), found_(found), sizes_(sizes) {
  for (const double threshold : settings.iou_thresholds) needed_.push_back(std::min(threshold, 1 - 1e-10));
  least_needed_ = *std::min_element(needed_.begin(), needed_.end());
}

void CellMatcher::match(const uint32_t* truth, size_t truths, const uint32_t* found, size_t founds, Matches& matches) {
  // Equal scores rank in input order. Beyond the largest maximum nothing counts anywhere.
  order_.assign(found, found + founds);
  std::sort(order_.begin(), order_.end(),
      [score = found_.score](uint32_t a, uint32_t b) { return score[a] != score[b] ? score[a] > score[b] : a < b; });
  order_.resize(std::min(founds, static_cast<size_t>(settings_.max_detections.back())));
  load_truth(truth, truths);
  const size_t block = settings_.area_ranges.size() * needed_.size(), truth_runs = runs_.size();
  for (size_t rank = 0; rank < order_.size(); ++rank) {
    const uint32_t index = order_[rank];
    runs_.resize(truth_runs);
    const Shape shape = load(found_, index);
    find_candidates(shape);
    int32_t matched = -1;
    if (!candidates_.empty()) {
      matched = static_cast<int32_t>(matches.outcomes.size() / block);
      matches.outcomes.resize(matches.outcomes.size() + block);
      assign(shape.area, matches.outcomes.data() + matched * block);
    }
    matches.ranked.push_back({found_.score[index], shape.area, static_cast<int32_t>(rank), matched});
  }
}

CellMatcher::Shape CellMatcher::load(const Instances& instances, uint32_t index) {
  Shape shape{};
  if (instances.boxes) {
    shape.box = instances.boxes[index];
    shape.area = shape.box.width * shape.box.height;
  } else {
    const Size size = sizes_[instances.image[index]];
    shape.first_run = runs_.size();
    parse_counts(instances.masks[index], size.pixels(), runs_);
    shape.runs = runs_.size() - shape.first_run;
    const RunsView runs{runs_.data() + shape.first_run, shape.runs};
    shape.box = bounding_box(runs, size.height);
    shape.pixels = area(runs);
    shape.area = shape.pixels;
  }
  if (instances.area) shape.area = instances.area[index];
  return shape;
}

void CellMatcher::load_truth(const uint32_t* truth, size_t truths) {
  runs_.clear(), truths_.clear(), crowd_.clear();
  const auto& ranges = settings_.area_ranges;
  ignored_.resize(ranges.size() * truths);
  taken_.assign(ranges.size() * needed_.size() * truths, 0);
  for (size_t g = 0; g < truths; ++g) {
    const uint32_t index = truth[g];
    truths_.push_back(load(truth_, index));
    crowd_.push_back(truth_.crowd[index]);
    for (size_t a = 0; a < ranges.size(); ++a) {
      ignored_[a * truths + g] = truth_.crowd[index] || truth_.ignore[index] || ranges[a].excludes(truths_[g].area);
    }
  }
}

double CellMatcher::iou(const Shape& found, const Shape& truth, bool crowd) const {
  const double of_boxes = box_iou(found.box, truth.box, crowd);
  if (found_.boxes || !(of_boxes > 0)) return of_boxes;
  const auto runs = [&](const Shape& shape) { return RunsView{runs_.data() + shape.first_run, shape.runs}; };
  // At best the smaller mask lies inside the larger, and a detection inside the crowd.
  const uint32_t most = crowd ? found.pixels : std::min(found.pixels, truth.pixels);
  if (mask_iou(most, found.pixels, truth.pixels, crowd) < least_needed_) return 0;
  return mask_iou(intersection_area(runs(found), runs(truth)), found.pixels, truth.pixels, crowd);
}

void CellMatcher::find_candidates(const Shape& found) {
  candidates_.clear();
  for (size_t g = 0; g < truths_.size(); ++g) {
    const double overlap = iou(found, truths_[g], crowd_[g]);
    // Negated comparisons here and below, as in pycocotools, where an IoU that is not a number passes them.
    if (!(overlap < least_needed_)) candidates_.push_back({static_cast<uint32_t>(g), overlap});
  }
}

// The detection takes the ground truth that it overlaps most and that none before it took; of several equal ones the
// last. One that is ignored at this area range is second choice, however large its overlap, and a crowd may be taken
// any number of times.
void CellMatcher::assign(double area, uint8_t* outcomes) {
  const size_t count = truths_.size();
  for (size_t a = 0; a < settings_.area_ranges.size(); ++a) {
    const uint8_t* ignored = ignored_.data() + a * count;
    const uint8_t unmatched = settings_.area_ranges[a].excludes(area) ? kIgnored : kFalsePositive;
    for (size_t t = 0; t < needed_.size(); ++t, ++outcomes) {
      uint8_t* taken = taken_.data() + (a * needed_.size() + t) * count;
      const Candidate* match = nullptr;
      for (const bool second_choice : {false, true}) {
        double best = needed_[t];
        for (const Candidate& candidate : candidates_) {
          const uint32_t g = candidate.truth;
          if (ignored[g] != second_choice || (taken[g] && !crowd_[g]) || candidate.iou < best) continue;
          best = candidate.iou, match = &candidate;
        }
        if (match) break;
      }
      *outcomes = unmatched;
      if (!match) continue;
      taken[match->truth] = 1;
      *outcomes = ignored[match->truth] ? kIgnored : kTruePositive;
    }
  }
}

}  // namespace cvops::host
