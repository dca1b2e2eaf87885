// Precision-recall curves of one category from the outcomes of its detections.
#pragma once

#include "host/coco.h"

namespace cvops::host {

// The arrays that pycocotools calls eval. All hold -1 where there is no ground truth.
struct Curves {
  double* precision;  // [T, R, K, A, M]: the best at this recall or a higher one; 0 where recall is not reached
  double* scores;     // [T, R, K, A, M]: the score at which recall is reached; 0 where it is not
  double* recall;     // [T, K, A, M]: the highest
};

class Accumulator {
 public:
  Accumulator(const Settings& settings, const Curves& curves) : settings_(settings), curves_(curves) {}

  // Sorts `matches.ranked` by score. positives: [A], ground truths of the category that are not ignored.
  void accumulate(size_t category, Matches& matches, const std::vector<int64_t>& positives);

 private:
  struct Hit {
    double precision, score;
  };

  void write(size_t category, size_t area, size_t maximum, const Matches& matches, int64_t positives);

  const Settings& settings_;
  const Curves curves_;
  std::vector<int64_t> hits_needed_;      // [R]
  std::vector<std::vector<Hit>> hits_;    // [T], true positives, best score first
  std::vector<int64_t> false_positives_;  // [T]
};

}  // namespace cvops::host
