"""How good detections are: COCO's and VOC's average precision, and COCO's run-length encoded masks.

| name | what it does |
|---|---|
| `CocoEvaluator` | collects detections, image by image or process by process, and gives a `CocoResult` |
| `read_coco` | the same from COCO's ground-truth and result files |
| `VocEvaluator` | average precision of VOC 2007 and 2010 |
| `rle` | masks to and from COCO's RLE; areas, boxes, IoU |
"""

from cvops.metrics import rle
from cvops.metrics.coco import CocoEvaluator
from cvops.metrics.coco_json import CocoFormatError, read_coco
from cvops.metrics.coco_result import CocoResult
from cvops.metrics.state import DetectionState
from cvops.metrics.voc import VocEvaluator, VocResult

__all__ = [
    "CocoEvaluator",
    "CocoFormatError",
    "CocoResult",
    "DetectionState",
    "VocEvaluator",
    "VocResult",
    "read_coco",
    "rle",
]
