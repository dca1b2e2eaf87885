"""Images and labels around the models: reading and preprocessing pictures, names of classes. Networks are in
`cvops.models`. Reading pictures needs Pillow (`pip install 'cvops[cli]'`)."""

from cvops.data.coco import coco_categories, coco_classes
from cvops.data.image import ImageError, load_image, preprocess, to_tensor
from cvops.data.imagenet import imagenet_classes

__all__ = ["ImageError", "coco_categories", "coco_classes", "imagenet_classes", "load_image", "preprocess", "to_tensor"]
