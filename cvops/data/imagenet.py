"""Names of the ImageNet-1k classes, from the text file beside this module."""

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 short names, in the order of the networks' outputs.

    >>> imagenet_classes()[285], imagenet_classes()[967]
    ('Egyptian cat', 'espresso')
    """
    text = files("cvops.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(line.partition(" ")[2] for line in text.splitlines() if not line.startswith("#"))
