// Precision and recall change at every detection, but the curves need them at true positives only: precision falls
// with every false positive, so the best at some recall or higher is that of a true positive. Those are few, and false
// positives that no threshold matched are counted once for all thresholds.
#include "host/coco_accumulate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cvops::host {

namespace {

// The number of hits, at least, at which recall reaches the threshold, with recall rounded as it is reported.
int64_t hits_needed(double threshold, int64_t positives) {
  const auto recall = [positives](int64_t hits) { return static_cast<double>(hits) / static_cast<double>(positives); };
  auto hits = static_cast<int64_t>(std::ceil(threshold * static_cast<double>(positives)));
  while (hits > 0 && recall(hits - 1) >= threshold) --hits;
  while (recall(hits) < threshold) ++hits;
  return hits;
}

}  // namespace

void Accumulator::accumulate(size_t category, Matches& matches, const std::vector<int64_t>& positives) {
  std::stable_sort(
      matches.ranked.begin(), matches.ranked.end(), [](const Ranked& a, const Ranked& b) { return a.score > b.score; });
  for (size_t a = 0; a < settings_.area_ranges.size(); ++a) {
    if (positives[a] == 0) continue;
    hits_needed_.clear();
    for (const double threshold : settings_.recall_thresholds) {
      hits_needed_.push_back(hits_needed(threshold, positives[a]));
    }
    for (size_t m = 0; m < settings_.max_detections.size(); ++m) write(category, a, m, matches, positives[a]);
  }
}

void Accumulator::write(size_t category, size_t area, size_t maximum, const Matches& matches, int64_t positives) {
  const size_t thresholds = settings_.iou_thresholds.size(), recalls = hits_needed_.size();
  const size_t areas = settings_.area_ranges.size(), maxima = settings_.max_detections.size();
  hits_.resize(thresholds);
  for (auto& hits : hits_) hits.clear();
  false_positives_.assign(thresholds, 0);
  int64_t always_false = 0;  // at every threshold
  const Ranked* best = nullptr;
  for (const Ranked& ranked : matches.ranked) {
    if (ranked.rank >= settings_.max_detections[maximum]) continue;
    if (!best) best = &ranked;
    if (ranked.matched < 0) {
      always_false += !settings_.area_ranges[area].excludes(ranked.area);
      continue;
    }
    const uint8_t* outcomes = matches.outcomes.data() + (ranked.matched * areas + area) * thresholds;
    for (size_t t = 0; t < thresholds; ++t) {
      if (outcomes[t] == kFalsePositive) ++false_positives_[t];
      if (outcomes[t] != kTruePositive) continue;
      const auto hits = static_cast<double>(hits_[t].size() + 1);
      const auto misses = static_cast<double>(always_false + false_positives_[t]);
      hits_[t].push_back({hits / (misses + hits + std::numeric_limits<double>::epsilon()), ranked.score});
    }
  }
  const size_t column = (category * areas + area) * maxima + maximum, columns = settings_.categories * areas * maxima;
  for (size_t t = 0; t < thresholds; ++t) {
    auto& hits = hits_[t];
    curves_.recall[t * columns + column] = static_cast<double>(hits.size()) / static_cast<double>(positives);
    for (size_t i = hits.size(); i-- > 1;) hits[i - 1].precision = std::max(hits[i - 1].precision, hits[i].precision);
    for (size_t r = 0; r < recalls; ++r) {
      Hit at{0, 0};
      const auto needed = static_cast<size_t>(hits_needed_[r]);
      if (needed == 0 && best) {  // recall 0 is reached by the first detection, hit or miss
        at = {hits.empty() ? 0 : hits[0].precision, best->score};
      } else if (needed > 0 && needed <= hits.size()) {
        at = hits[needed - 1];
      }
      curves_.precision[(t * recalls + r) * columns + column] = at.precision;
      curves_.scores[(t * recalls + r) * columns + column] = at.score;
    }
  }
}

}  // namespace cvops::host
