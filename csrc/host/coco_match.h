// Matching in one cell: the instances of one category in one image.
#pragma once

#include "host/coco.h"

namespace cvops::host {

// Has scratch memory that cells share: one matcher for each thread.
class CellMatcher {
 public:
  // sizes: [images] for masks, else null.
  CellMatcher(const Settings& settings, const GroundTruth& truth, const Detections& found, const Size* sizes);

  // truth, found: indices of the cell's instances, in input order. Appends to `matches`.
  void match(const uint32_t* truth, size_t truths, const uint32_t* found, size_t founds, Matches& matches);

 private:
  struct Candidate {
    uint32_t truth;  // in the cell
    double iou;
  };

  // Shape of an instance, masks parsed.
  struct Shape {
    Box box;
    double area;
    uint32_t pixels;  // of a mask
    size_t first_run, runs;
  };

  Shape load(const Instances& instances, uint32_t index);
  double iou(const Shape& found, const Shape& truth, bool crowd) const;
  void load_truth(const uint32_t* truth, size_t truths);
  void find_candidates(const Shape& found);
  void assign(double area, uint8_t* outcomes);

  const Settings& settings_;
  const GroundTruth& truth_;
  const Detections& found_;
  const Size* sizes_;
  std::vector<double> needed_;  // [T]: the IoU that a match needs
  double least_needed_;

  std::vector<uint32_t> order_;   // of the cell's detections, best first
  std::vector<Shape> truths_;     // [G]
  std::vector<uint8_t> crowd_;    // [G]
  std::vector<uint8_t> ignored_;  // [A, G]
  std::vector<uint8_t> taken_;    // [A, T, G]
  std::vector<Candidate> candidates_;
  Runs runs_;  // of the ground truths, then of the detection at hand
};

}  // namespace cvops::host
