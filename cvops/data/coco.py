"""Names and numbers of COCO's categories, from the text file beside this module. Reading COCO's annotations and results
is `cvops.metrics`."""

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def coco_categories() -> dict[int, str]:
    """The 80 names by category id, in the order of COCO's file; ids are 1 to 90 with gaps.

    >>> categories = coco_categories()
    >>> len(categories), categories[1], categories[90]
    (80, 'person', 'toothbrush')
    """
    text = files("cvops.data").joinpath("coco_categories.txt").read_text(encoding="utf-8")
    rows = [line.split(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {int(number): name for number, name in rows}


def coco_classes(num_classes: int = 80) -> tuple[str, ...]:
    """The names by label of a network trained on COCO, of which there are three conventions: 80 labels without gaps, 91
    that are the category ids (torchvision's one-stage detectors), and 90 that are the ids less one (effdet, and
    torchvision's two-stage detectors, whose background is no label here). Unused ids are called "N/A".

    Raises `ValueError` for another `num_classes`.

    >>> [coco_classes(count).index("toothbrush") for count in (80, 90, 91)]
    [79, 89, 90]
    """
    names = coco_categories()
    if num_classes == len(names):
        return tuple(names.values())
    if num_classes not in (90, 91):
        raise ValueError(f"num_classes must be 80, 90 or 91 for COCO's names, got {num_classes}")
    first = 91 - num_classes
    return tuple(names.get(number, "N/A") for number in range(first, 91))
