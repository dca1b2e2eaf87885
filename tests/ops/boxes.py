"""Boxes for the tests of box_iou, iou_loss and nms: random ones, the awkward ones, and hypothesis strategies."""

import torch
from hypothesis import strategies as st


def random_boxes(*shape, dtype=torch.float32, device="cpu", extent=100.0, size=60.0):
    """Valid boxes [*shape, 4] with corners that may be negative; no side is so short that bfloat16 makes it vanish."""
    corner = (torch.rand(*shape, 2, dtype=torch.float64) - 0.3) * extent
    side = torch.rand(*shape, 2, dtype=torch.float64) * size + 4
    return torch.cat([corner, corner + side], -1).to(device, dtype)


# Pairs that break packages: name -> (box, box).
AWKWARD_PAIRS = {
    "identical": ([1.0, 2, 5, 7], [1.0, 2, 5, 7]),
    "touching_edge": ([0.0, 0, 2, 2], [2.0, 0, 4, 2]),
    "touching_corner": ([0.0, 0, 2, 2], [2.0, 2, 4, 4]),
    "contained": ([0.0, 0, 9, 9], [3.0, 3, 4, 4]),
    "zero_width": ([1.0, 1, 1, 5], [0.0, 0, 4, 4]),
    "zero_height": ([1.0, 1, 5, 1], [0.0, 0, 4, 4]),
    "same_point": ([3.0, 3, 3, 3], [3.0, 3, 3, 3]),
    "two_points": ([3.0, 3, 3, 3], [8.0, 1, 8, 1]),
    "same_zero_width": ([1.0, 1, 1, 5], [1.0, 1, 1, 5]),
    "tiny": ([0.0, 0, 1e-20, 1e-20], [0.0, 0, 1e-20, 1e-20]),
    "denormal": ([0.0, 0, 1e-42, 1e-42], [0.0, 0, 2e-42, 1e-42]),
    "large": ([1e6, 1e6, 1e6 + 64, 1e6 + 64], [1e6 + 8, 1e6, 1e6 + 72, 1e6 + 64]),
    "far_apart": ([-1e4, -1e4, -1e4 + 1, -1e4 + 1], [1e4, 1e4, 1e4 + 1, 1e4 + 1]),
    "inverted": ([5.0, 5, 1, 1], [0.0, 0, 4, 4]),
}


@st.composite
def boxes_strategy(draw, count, dtype=torch.float32):
    """`count` boxes: continuous or on a small integer grid (many ties), near or far from 0, some of zero area."""
    on_grid = draw(st.booleans())
    offset = draw(st.sampled_from([0.0, -300.0, 4096.0]))
    scale = draw(st.sampled_from([1.0, 64.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 4
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 3
    if on_grid:
        corner, side = corner.floor(), side.round()
    boxes = torch.cat([corner, corner + side], -1) * scale + offset
    return boxes.to(dtype)
