// Polygons to masks, pixel for pixel as pycocotools draws them.
#pragma once

#include "host/rle.h"

namespace cvops::host {

// The mask of one closed polygon: xy [points, 2], x then y, in pixels; the corner of pixel (0, 0) is at the origin.
// Throws std::invalid_argument for fewer than two points and for coordinates that are not finite or beyond 1e8.
Runs polygon_runs(const double* xy, size_t points, Size size);

}  // namespace cvops::host
