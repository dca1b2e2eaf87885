// The whole evaluation: order, matching and accumulation on threads.
#pragma once

#include "host/coco_accumulate.h"

namespace cvops::host {

// Writes every element of the curves. sizes: [images] for masks, else null. Images of an instance must be below
// `images`, categories below settings.categories, and no score or IoU threshold NaN. The curves do not depend on the
// number of threads. Throws std::invalid_argument for a mask that does not fit its image's size.
void coco_evaluate(const Settings& settings, const GroundTruth& truth, const Detections& found, size_t images,
    const Size* sizes, const Curves& curves);

}  // namespace cvops::host
