"""Writes Darknet's `.cfg` and `.weights` files of a YOLOv4, from Darknet's side: layers one by one, with the routes
that its yolov4.cfg has."""

import struct
from pathlib import Path

import numpy as np

from cvops.models.yolov4 import YOLOv4Config

NAMES = {"mish": "mish", "leaky_relu": "leaky"}


def cfg_of(config: YOLOv4Config) -> str:
    layers: list[str] = []

    def layer(kind: str, **options: object) -> int:
        layers.append(f"[{kind}]\n" + "".join(f"{key}={value}\n" for key, value in options.items()))
        return len(layers) - 1

    def conv(filters: int, size: int = 1, stride: int = 1, act: str = NAMES[config.act]) -> int:
        return layer(
            "convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1, activation=act
        )

    def route(*sources: int) -> int:
        return layer("route", layers=",".join(str(source - len(layers)) for source in sources))

    conv(config.stem, 3)
    ends = []
    for i, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
        half = channels // 2
        width = channels if i == 0 else half
        conv(channels, 3, 2)
        skip = conv(width)
        route(skip - 1)
        conv(width)
        for _ in range(depth):
            conv(half)
            conv(width, 3)
            layer("shortcut", **{"from": -3, "activation": "linear"})
        end = conv(width)
        route(end, skip)
        ends.append(conv(channels))

    act = NAMES[config.neck_act]

    def block(channels: int, units: int, attention: bool = False) -> int:
        for i in range(units):
            if attention and i == 4:
                conv(2 * channels, act="logistic")
                layer("sam", **{"from": -2})
            conv(2 * channels if i % 2 else channels, 3 if i % 2 else 1, act=act)
        return len(layers) - 1

    fine, middle, coarse = (c // 2 for c in config.channels[2:])
    start = block(coarse, 3)
    pools = [start]
    for size in (5, 9, 13):
        if size > 5:
            route(start)
        pools.append(layer("maxpool", stride=1, size=size))
    route(*reversed(pools))
    down = [block(coarse, 3)]
    for channels, end in ((middle, ends[3]), (fine, ends[2])):
        conv(channels, act=act)
        up = layer("upsample", stride=2)
        layer("route", layers=end)  # numbered from the start of the file, as Darknet's has these two
        route(conv(channels, act=act), up)
        down.append(block(channels, 5, config.attention and channels == fine))
    last = down[2]
    anchors = ", ".join(f"{w}, {h}" for level in config.anchors for w, h in level)
    for i, channels in enumerate((fine, middle, coarse)):
        if i > 0:
            route(last)
            route(conv(channels, 3, 2, act), down[2 - i])
            last = block(channels, 5, config.attention)
        conv(2 * channels, 3, act=act)
        layer("convolutional", size=1, stride=1, pad=1, filters=3 * (5 + config.num_classes), activation="linear")
        mask = ",".join(str(3 * i + k) for k in range(3))
        layer("yolo", mask=mask, anchors=anchors, classes=config.num_classes, scale_x_y=config.grid_scales[i])
    return "[net]\nwidth=608\nheight=608\nchannels=3\n\n# the layers\n" + "\n".join(layers)


def write_weights(
    cfg: str, path: Path, *, version: tuple[int, int, int] = (0, 2, 5), seed: int = 0
) -> list[np.ndarray]:
    """Random numbers for every convolution of a `.cfg`, in Darknet's order; returns them array by array."""
    draw = np.random.default_rng(seed)
    widths: list[int] = []
    arrays: list[np.ndarray] = []
    before = 3
    for section in cfg.split("[")[2:]:
        kind, _, rest = section.partition("]")
        options = dict(line.split("=") for line in rest.split() if "=" in line)
        if kind == "convolutional":
            filters, size = int(options["filters"]), int(options["size"])
            norms = 4 if options.get("batch_normalize") == "1" else 1
            arrays += [draw.uniform(0.5, 1.5, filters).astype("<f4") for _ in range(norms)]
            shape = (filters, before, size, size)
            arrays.append((draw.standard_normal(shape) / np.sqrt(before * size * size)).astype("<f4"))
            before = filters
        elif kind == "route":
            sources = [int(v) for v in options["layers"].split(",")]
            before = sum(widths[v] for v in sources)
        widths.append(before)
    header = struct.pack("<3i", *version) + struct.pack("<q" if version[1] >= 2 else "<i", 32_013_312)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays))
    return arrays
