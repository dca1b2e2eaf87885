"""Heads that families share: feature maps to raw predictions. Postprocessing is not theirs."""

from cvops.models.head.classification import ClassificationHead

__all__ = ["ClassificationHead"]
