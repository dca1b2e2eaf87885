"""mask_paste against F.grid_sample over whole images, as detectron2 pastes, and torchvision's loop.

torchvision rounds boxes to whole pixels, so its masks differ along their borders.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from bench.common import Case, Contest, benchmarks, forward_backward, nbytes
from cvops import ops


def whole_image(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """detectron2's `_do_paste_mask` without `skip_empty`, as it runs on a GPU, and under export."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    x = (torch.arange(width, device=masks.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height, device=masks.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    size = (len(boxes), height, width)
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], -1)
    return F.grid_sample(masks, grid.to(masks.dtype), align_corners=False)[:, 0]


def detections(k: int, m: int, height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Boxes of objects of all sizes, and masks that are smooth."""
    torch.manual_seed(0)
    centre = torch.rand(k, 2) * torch.tensor([width, height])
    half = torch.exp(torch.rand(k, 2) * 3 + 2) / 2 * 1.5
    masks = F.interpolate(torch.rand(k, 1, 6, 6), (m, m), mode="bicubic").clamp(0, 1)
    return masks.to(device), torch.cat([centre - half, centre + half], 1).to(device)


def nearly_all(ours: Tensor, theirs: Tensor) -> None:
    """A value within a rounding of the threshold may fall on either side of it."""
    if ours.dtype != torch.bool:
        return torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (ours != theirs).float().mean() < 1e-5


def but_for_borders(ours: Tensor, theirs: Tensor) -> None:
    assert (ours != theirs).float().mean() < 1e-3
    assert (ours & theirs).sum() > 0.9 * (ours | theirs).sum()


def contest(k: int, m: int, height: int, width: int, threshold: float | None, loop: bool, device: str) -> Contest:
    masks, boxes = detections(k, m, height, width, device)

    def peer() -> Tensor:
        values = whole_image(masks, boxes, height, width)
        return values if threshold is None else values >= threshold

    def torchvision() -> Tensor:
        return paste_masks_in_image(masks, boxes, (height, width))[:, 0] >= 0.5

    size = k * height * width * (4 if threshold is None else 1)
    return Contest(
        cvops=lambda: ops.mask_paste(masks, boxes, (height, width), threshold),
        peers={"torchvision": torchvision} if loop else {"grid_sample": peer},
        bytes=nbytes(masks, boxes) + size,
        agree=but_for_borders if loop else nearly_all,
    )


def contest_backward(k: int, m: int, height: int, width: int, device: str) -> Contest:
    masks, boxes = detections(k, m, height, width, device)
    grad = torch.rand(k, height, width, device=device)

    def both(paste: object) -> object:
        return forward_backward(paste, masks, grad=grad)  # type: ignore[arg-type]

    return Contest(
        cvops=both(lambda x: ops.mask_paste(x, boxes, (height, width), None)),  # type: ignore[arg-type]
        peers={"grid_sample": both(lambda x: whole_image(x, boxes, height, width))},  # type: ignore[dict-item]
        bytes=nbytes(masks, masks, boxes, grad, grad),
        agree=lambda ours, theirs: torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2),
    )


CASES = [
    Case("mask_paste", "100 x 28 to 800 x 1333", partial(contest, 100, 28, 800, 1333, 0.5, False), quick=True),
    Case("mask_paste", "100 x 28 to 800 x 1333, loop", partial(contest, 100, 28, 800, 1333, 0.5, True)),
    Case("mask_paste", "10 x 28 to 480 x 640", partial(contest, 10, 28, 480, 640, 0.5, False)),
    Case("mask_paste", "10 x 28 to 480 x 640, loop", partial(contest, 10, 28, 480, 640, 0.5, True)),
    Case("mask_paste", "20 x 112 to 800 x 1333", partial(contest, 20, 112, 800, 1333, 0.5, False)),
    Case("mask_paste", "20 x 28 to 800 x 1333, values", partial(contest, 20, 28, 800, 1333, None, False)),
    Case("mask_paste backward", "20 x 28 to 800 x 1333", partial(contest_backward, 20, 28, 800, 1333)),
]

test_mask_paste = benchmarks(CASES)
