"""How good detections are. `rle` holds COCO's run-length encoded masks."""

from cvops.metrics import rle

__all__ = ["rle"]
