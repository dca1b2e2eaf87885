"""What a COCO evaluation found: the arrays of pycocotools' `eval`, and the numbers that are read off them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOTHING = -1.0  # COCO's mark for "no ground truth to find", left out of every mean


@dataclass(frozen=True)
class CocoResult:
    """Curves over IoU threshold T, recall threshold R, category K, area range A, and maximum of detections per category
    and image M, equal to pycocotools' to the last bit.

    `precision` and `scores` are `[T, R, K, A, M]`: the best precision at a recall of at least R, and the score at which
    that recall is reached; 0 beyond the highest recall. `recall` is `[T, K, A, M]`, the highest one. All are -1 where a
    category has no ground truth in the area range.
    """

    iou_type: str
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    iou_thresholds: tuple[float, ...]
    recall_thresholds: tuple[float, ...]
    categories: Mapping[int, str]  # id to name, in the order of K
    area_ranges: Mapping[str, tuple[float, float]]
    max_detections: tuple[int, ...]
    images: int
    unknown_labels: Mapping[int, int]  # labels that are no category: how many detections had them, and were left out

    def ap(
        self,
        iou: float | None = None,
        area: str | None = None,
        category: int | None = None,
        max_detections: int | None = None,
    ) -> float:
        """Average precision: the mean over recall thresholds, and over what is not chosen of IoU thresholds and
        categories; -1 if none of those has ground truth. Without `area`, the first range (COCO's "all"); without
        `max_detections`, the largest."""
        t, k, a, m = self._choose(iou, area, category, max_detections)
        return _mean(self.precision[t, :, k, a, m])

    def ar(
        self,
        iou: float | None = None,
        area: str | None = None,
        category: int | None = None,
        max_detections: int | None = None,
    ) -> float:
        """Average recall: the mean of the highest recalls; arguments as of `ap`."""
        t, k, a, m = self._choose(iou, area, category, max_detections)
        return _mean(self.recall[t, k, a, m])

    @property
    def summary(self) -> dict[str, float]:
        """The numbers by name: `AP`, `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, `AR@1`, `AR@10`, `AR@100`,
        `AR_small`, `AR_medium`, `AR_large`, which are COCO's twelve in pycocotools' order. With other settings there is
        an `AR@M` for every maximum, an `AP_` and `AR_` for every area range but the first, and `AP50` and `AP75` only
        where those thresholds were evaluated. All but `AR@M` are at the largest maximum."""
        areas = list(self.area_ranges)[1:]
        return {
            "AP": self.ap(),
            **{f"AP{100 * iou:.0f}": self.ap(iou) for iou in (0.5, 0.75) if iou in self.iou_thresholds},
            **{f"AP_{area}": self.ap(area=area) for area in areas},
            **{f"AR@{maximum}": self.ar(max_detections=maximum) for maximum in self.max_detections},
            **{f"AR_{area}": self.ar(area=area) for area in areas},
        }

    @property
    def stats(self) -> NDArray[np.float64]:
        """The values of `summary`; with the default settings, pycocotools' `stats`."""
        return np.array(list(self.summary.values()))

    @property
    def per_class(self) -> list[dict[str, float | int | str]]:
        """For every category its `id` and `name`, and of `summary` the AP numbers and the AR at the largest maximum."""
        largest = self.max_detections[-1]
        areas = list(self.area_ranges)[1:]
        return [
            {
                "id": category,
                "name": name,
                "AP": self.ap(category=category),
                **{
                    f"AP{100 * iou:.0f}": self.ap(iou, category=category)
                    for iou in (0.5, 0.75)
                    if iou in self.iou_thresholds
                },
                **{f"AP_{area}": self.ap(area=area, category=category) for area in areas},
                f"AR@{largest}": self.ar(category=category),
            }
            for category, name in self.categories.items()
        ]

    def __str__(self) -> str:
        """One number a line."""
        return "\n".join(f"{name:<12}{value:6.3f}" for name, value in self.summary.items())

    def _choose(
        self, iou: float | None, area: str | None, category: int | None, max_detections: int | None
    ) -> tuple[slice, slice, int, int]:
        return (
            slice(None) if iou is None else _one(_place("iou", iou, self.iou_thresholds)),
            slice(None) if category is None else _one(_place("category", category, tuple(self.categories))),
            0 if area is None else _place("area", area, tuple(self.area_ranges)),
            -1 if max_detections is None else _place("max_detections", max_detections, self.max_detections),
        )


def _one(place: int) -> slice:
    return slice(place, place + 1)


def _place(name: str, wanted: float | str, known: tuple[float, ...] | tuple[str, ...]) -> int:
    if wanted not in known:
        raise ValueError(f"{name} must be one of those evaluated, {known}, got {wanted!r}")
    return known.index(wanted)  # type: ignore[arg-type]


def _mean(values: NDArray[np.float64]) -> float:
    present = values[values > NOTHING]
    return float(present.mean()) if present.size else NOTHING
