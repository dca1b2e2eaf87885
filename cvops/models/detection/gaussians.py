"""Heat maps of key points: a Gaussian bump on every point, as wide as its object allows. Targets of CornerNet and both
CenterNets; their losses are in `keypoint_losses.py`."""

import torch
from torch import Tensor

DEVIATIONS = 6.0  # standard deviations in a bump's window
CHUNK = 16  # bumps that are drawn at a time, which bounds the memory


def gaussian_radius(heights: Tensor, widths: Tensor, overlap: float) -> Tensor:
    """How far, along both axes at once, the corners of a box may be off so that it still overlaps itself by an IoU of
    `overlap` (Law and Deng 2018, arXiv:1808.01244, section 3.2): the smallest of the answers for a box that grows,
    shrinks, or moves. heights, widths: [N] floating, of any unit. Returns [N] in that unit.

    CornerNet's code before its commit 3e71377, and CenterNet's (points), solve the quadratic equations otherwise and
    get larger radii; this is the geometry, as CornerNet's code has it since.

    >>> gaussian_radius(torch.tensor([10.0]), torch.tensor([20.0]), 0.7)
    tensor([1.0774])
    """
    if not 0 < overlap < 1:
        raise ValueError(f"overlap must be in (0, 1), got {overlap}")
    both, area = heights + widths, heights * widths
    # (w - r)(h - r) = inter with IoU inter / (2 wh - inter); (w - 2r)(h - 2r) = overlap wh; (w + 2r)(h + 2r) = wh / o.
    moved = (both - (both**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inside = (both - (both**2 - 4 * area * (1 - overlap)).sqrt()) / 4
    outside = (-both + (both**2 + 4 * area * (1 - overlap) / overlap).sqrt()) / 4
    return torch.minimum(torch.minimum(moved, inside), outside)


def draw_gaussians(
    shape: tuple[int, int, int, int],
    image: Tensor,
    channel: Tensor,
    ys: Tensor,
    xs: Tensor,
    radii: Tensor,
    deviations: float = DEVIATIONS,
) -> Tensor:
    """Heat maps [B, C, H, W] = `shape` in 0..1, float32 or as `radii`: 1 at every point, around it a Gaussian within
    `radii` pixels, rounded down, along each axis, in whose window, 2 * radius + 1, there are so many `deviations`; the
    maximum where bumps meet.

    image, channel, ys, xs: [N] int64, inside `shape`. radii: [N] floating, 0 or more, pixels of the map; or [N, 2],
        vertical and horizontal.

    >>> point = torch.tensor([0])
    >>> draw_gaussians((1, 1, 1, 4), point, point, point, torch.tensor([1]), torch.tensor([1.9]))
    tensor([[[[0.1353, 1.0000, 0.1353, 0.0000]]]])
    """
    batch, channels, height, width = shape
    radii = radii.to(torch.promote_types(radii.dtype, torch.float32)).floor().clamp(min=0)
    radii = radii if radii.ndim == 2 else radii[:, None].expand(-1, 2)
    heat = radii.new_zeros(batch * channels, height, width)
    plane = image * channels + channel
    down, across = (torch.arange(side, device=heat.device, dtype=heat.dtype) for side in (height, width))
    for start in range(0, len(plane), CHUNK):
        some = slice(start, start + CHUNK)
        profiles = []
        for axis, at, reach in zip((down, across), (ys[some], xs[some]), radii[some, :, None].unbind(1), strict=True):
            away = axis - at[:, None].to(axis)  # [n, H] and [n, W]
            bump = torch.exp(-(away**2) / (2 * ((2 * reach + 1) / deviations) ** 2))
            profiles.append(torch.where(away.abs() <= reach, bump, 0))
        bumps = profiles[0][:, :, None] * profiles[1][:, None]
        rows = plane[some, None, None].expand_as(bumps)
        heat.scatter_reduce_(0, rows, bumps, "amax")
    return heat.view(shape)
