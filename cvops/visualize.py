"""Detections drawn on pictures: boxes, labels with scores, masks. Needs Pillow (`pip install 'cvops[cli]'`). Finding
objects is `cvops.models`, names of classes are in `cvops.data`."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

_GOLDEN_ANGLE = 0.618034  # of a turn
_DARK, _LIGHT = (20, 20, 24), (255, 255, 255)


def colour_of(label: int) -> Colour:
    """The colour of a class, (red, green, blue) in 0..255: hues a golden angle apart, so that neighbours differ.

    >>> colour_of(0), colour_of(1)
    ((245, 51, 51), (51, 108, 245))
    """
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_ANGLE % 1, 0.79, 0.96)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: "Image | Tensor",
    detections: Mapping[str, Tensor],
    names: Sequence[str] | None = None,
    *,
    threshold: float = 0.0,
    mask_opacity: float = 0.45,
    font_size: int | None = None,
) -> "Image":
    """A copy of a picture with its detections on it, as a Pillow image.

    image: a Pillow image, or [3, H, W] (RGB; floating in 0..1, or uint8), or [1, H, W] for grey.
    detections: what a detector gives for one image, or a target: `boxes` [K, 4] as (x1, y1, x2, y2) in pixels, and any
        of `labels` [K], `scores` [K], `masks` [K, H, W] or [K, 1, H, W] (boolean, or in 0..1 and then cut at 0.5).
    names: of the labels; without them, or beyond their end, the number is written.
    threshold: detections with a lower score are left out.
    mask_opacity: of masks, from 0 (not seen) to 1.
    font_size: in pixels; None makes it fit the picture.

    The best detections are drawn last, on top. Boxes and tags are of the class's colour (`colour_of`); a tag goes above
    its box, or where there is room. Raises `ValueError` that names the argument for shapes that do not fit.

    >>> found = {"boxes": torch.tensor([[4.0, 8, 40, 30]]), "labels": torch.tensor([17]), "scores": torch.tensor([0.9])}
    >>> draw_detections(torch.zeros(3, 48, 64), found, coco_classes()).size
    (64, 48)
    """
    from PIL import Image, ImageDraw, ImageFont

    if not 0 <= mask_opacity <= 1:
        raise ValueError(f"mask_opacity must be in [0, 1], got {mask_opacity}")
    picture = _as_picture(image)
    boxes, labels, scores, masks = _checked(detections, picture.height, picture.width)
    order = [i for i in scores.argsort(stable=True).tolist() if scores[i] >= threshold]
    if masks is not None:
        pixels = np.asarray(picture, dtype=np.float32).copy()
        for i in order:
            inside = masks[i].numpy()
            pixels[inside] += mask_opacity * (np.array(colour_of(int(labels[i])), np.float32) - pixels[inside])
        picture = Image.fromarray(pixels.round().astype(np.uint8))
        for i in order:
            outline = Image.fromarray(_outline(masks[i]).numpy())
            picture.paste(colour_of(int(labels[i])), mask=outline)

    short = min(picture.size)
    size = font_size if font_size is not None else min(max(short // 26, 11), 40)
    font = ImageFont.load_default(size)
    width = max(1, round(size / 6))
    draw = ImageDraw.Draw(picture)
    for i in order:
        corners = _whole_pixels(boxes[i], picture.width, picture.height)
        # A dark line around the coloured one keeps it visible on any ground.
        draw.rectangle(_grown(corners, 1), outline=_DARK, width=width + 2)
        draw.rectangle(corners, outline=colour_of(int(labels[i])), width=width)
    taken: list[Rectangle] = []
    scored = "scores" in detections
    for i in reversed(order):  # the best detection has the first choice of a place
        label = int(labels[i])
        text = _text(label if "labels" in detections else None, names, float(scores[i]) if scored else None)
        if text:
            corners = _whole_pixels(boxes[i], picture.width, picture.height)
            taken.append(_draw_tag(draw, text, font, corners, colour_of(label), taken, picture.size))
    return picture


def _as_picture(image: "Image | Tensor") -> "Image":
    """A fresh RGB picture."""
    from PIL import Image

    if not isinstance(image, Tensor):
        return image.convert("RGB").copy()
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image must be [3, H, W] or [1, H, W], got {list(image.shape)}")
    if image.is_floating_point():
        image = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise ValueError(f"image must be floating in 0..1, or uint8, got {image.dtype}")
    rows = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(rows)


def _checked(detections: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Boxes, labels (0 where there are none), scores (1 where there are none), masks as booleans; on the CPU."""
    if "boxes" not in detections:
        raise ValueError(f"detections must have 'boxes', got {sorted(detections)}")
    boxes = detections["boxes"].detach().cpu().double()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"detections['boxes'] must be [K, 4], got {list(boxes.shape)}")
    if not boxes.isfinite().all():
        raise ValueError("detections['boxes'] must be finite")
    count = len(boxes)
    labels = detections.get("labels", torch.zeros(count, dtype=torch.int64)).detach().cpu()
    scores = detections.get("scores", torch.ones(count)).detach().cpu().double()
    for name, values in (("labels", labels), ("scores", scores)):
        if values.shape != (count,):
            raise ValueError(f"detections[{name!r}] must be [{count}], one for each box, got {list(values.shape)}")
    if "masks" not in detections:
        return boxes, labels, scores, None
    masks = detections["masks"].detach().cpu()
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.shape != (count, height, width):
        raise ValueError(
            f"detections['masks'] must be [{count}, {height}, {width}], as boxes and image, got {list(masks.shape)}"
        )
    return boxes, labels, scores, masks > 0.5 if masks.is_floating_point() else masks != 0


def _outline(mask: Tensor) -> Tensor:
    """The pixels of a mask [H, W] that have a neighbour outside of it, or outside of the image."""
    framed = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inner


def _whole_pixels(box: Tensor, width: int, height: int) -> Rectangle:
    """The pixels that a box reaches, ends included, inside the picture."""
    x1, y1, x2, y2 = box.tolist()
    left, top = min(max(round(x1), 0), width - 1), min(max(round(y1), 0), height - 1)
    right, bottom = min(max(round(x2) - 1, left), width - 1), min(max(round(y2) - 1, top), height - 1)
    return left, top, right, bottom


def _grown(corners: Rectangle, by: int) -> Rectangle:
    return corners[0] - by, corners[1] - by, corners[2] + by, corners[3] + by


def _text(label: int | None, names: Sequence[str] | None, score: float | None) -> str:
    parts = []
    if label is not None:
        parts.append(names[label] if names is not None and 0 <= label < len(names) else str(label))
    if score is not None:
        parts.append(f"{score:.2f}")
    return " ".join(parts)


def _draw_tag(
    draw: "ImageDraw",
    text: str,
    font: "FreeTypeFont | ImageFont",
    box: Rectangle,
    colour: Colour,
    taken: Sequence[Rectangle],
    picture: tuple[int, int],
) -> Rectangle:
    """Writes a tag at the first of the places around its box that is inside the picture and free, or at the first that
    is inside; returns the rectangle."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(2, round((bottom - top) / 5))
    # All tags of a font are equally high, whatever letters they have.
    _, line_top, _, line_bottom = draw.textbbox((0, 0), "Ag", font=font)
    width, height = round(right - left) + 2 * pad, round(line_bottom - line_top) + 2 * pad
    x1, y1, x2, y2 = box
    limit_x, limit_y = max(picture[0] - width, 0), max(picture[1] - height, 0)
    corners = [
        (x1, y1 - height),
        (x2 + 1 - width, y1 - height),
        (x1, y1),
        (x2 + 1 - width, y1),
        (x1, y2 + 1),
        (x1, y2 + 1 - height),
        (x2 + 1 - width, y2 + 1 - height),
    ]
    places = [(min(max(x, 0), limit_x), y) for x, y in corners if 0 <= y <= limit_y]
    places = places or [(min(max(x1, 0), limit_x), min(max(y1, 0), limit_y))]
    tags = [(x, y, x + width - 1, y + height - 1) for x, y in places]
    tag = next((t for t in tags if not any(_overlap(t, other) for other in taken)), tags[0])
    draw.rectangle(tag, fill=colour)
    # Rec. 601 luma tells which of the two letters' colours stands out.
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((tag[0] + pad - left, tag[1] + pad - line_top), text, font=font, fill=_DARK if luma > 140 else _LIGHT)
    return tag


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
