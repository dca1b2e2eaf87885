// What the parts of the COCO evaluation share: the instances, the settings, and what matching tells accumulation.
//
// An evaluation goes in three steps, one file each. coco_evaluate.cpp sorts instances by category and image and hands
// out the work. coco_match.cpp decides, in one category of one image, which detection finds which ground truth, for all
// area ranges and IoU thresholds in one pass. coco_accumulate.cpp makes precision-recall curves of a category.
// Results equal pycocotools' to the last bit; where its rules are not obvious, the comments say what they are.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "host/rle.h"

namespace cvops::host {

struct AreaRange {
  double low, high;  // pixels, both inclusive
  bool excludes(double area) const { return area < low || area > high; }
};

struct Settings {
  std::vector<double> iou_thresholds;     // T, any order
  std::vector<double> recall_thresholds;  // R, ascending, in 0 to 1
  std::vector<AreaRange> area_ranges;     // A
  std::vector<int64_t> max_detections;    // M, ascending: detections of a category that count in each image
  size_t categories = 0;                  // K
  int threads = 1;
};

// Ground truth or detections, as columns. Categories are 0 to K - 1; images are numbered in the order in which
// detections of equal score shall rank. Shapes are boxes or masks; the other pointer is null.
struct Instances {
  size_t count = 0;
  const int32_t* image = nullptr;           // [count]
  const int32_t* category = nullptr;        // [count]
  const Box* boxes = nullptr;               // [count]
  const std::string_view* masks = nullptr;  // [count], COCO's compressed counts
  const double* area = nullptr;             // [count]; null for detections: the area of the shape
};

struct GroundTruth : Instances {
  const uint8_t* crowd = nullptr;   // [count]: a region that any number of detections may lie in; always ignored
  const uint8_t* ignore = nullptr;  // [count]: finding it, or not, counts for nothing
};

struct Detections : Instances {
  const double* score = nullptr;  // [count]
};

// What became of a detection at one area range and IoU threshold.
enum Outcome : uint8_t { kFalsePositive, kTruePositive, kIgnored };

// A detection after matching. Most match nothing at any threshold: those need no outcomes, only their area.
struct Ranked {
  double score, area;
  int32_t rank;     // in its category and image, by descending score
  int32_t matched;  // which block [A, T] of outcomes is its own, or -1
};

struct Matches {
  std::vector<Ranked> ranked;     // by image, then rank
  std::vector<uint8_t> outcomes;  // blocks of [A, T]
};

}  // namespace cvops::host
