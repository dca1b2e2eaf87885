"""The bidirectional pyramid where golden cases and the peer do not reach: sizes that are no multiples, fusion weights
below zero, wrong settings."""

import pytest
import torch

from cvops.models.neck import BiFPN
from cvops.models.neck.bifpn import WeightedSum


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_maps_of_odd_sizes_are_halved_upwards(padding: str) -> None:
    neck = BiFPN((8, 16), 4, levels=4, cells=2, padding=padding)
    maps = neck([torch.rand(2, 8, 15, 17), torch.rand(2, 16, 8, 9)])
    assert [tuple(m.shape) for m in maps] == [(2, 4, 15, 17), (2, 4, 8, 9), (2, 4, 4, 5), (2, 4, 2, 3)]


def test_weights_below_zero_leave_a_map_out() -> None:
    fuse = WeightedSum(3)
    with torch.no_grad():
        fuse.edge_weights.copy_(torch.tensor([2.0, -1.0, 1.0]))
    maps = torch.rand(3, 1, 4, 2, 2).unbind()
    torch.testing.assert_close(fuse(maps), (2 * maps[0] + maps[2]) / 3.0001)
    fuse(maps).sum().backward()
    assert fuse.edge_weights.grad[1] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "softmax"}, "fusion must be 'fast' or 'sum', got 'softmax'"),
        ({"cells": 0}, "cells must be 1 or more, got 0"),
        ({"levels": 2}, "levels must be more than the 2 maps of the backbone, got 2"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiFPN((8, 16), 4, **settings)
