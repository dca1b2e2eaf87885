"""Writes docs/ops.md from the docstrings of the public ops, docs/zoo.md and docs/zoo.png from the registry of models:
`python docs/build.py`. A test keeps pages and code equal, and another tells when the picture is older than its data."""

import dataclasses
import inspect
import json
import math
import pkgutil
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import cvops
from cvops import ops
from cvops.models import Accuracy, ModelInfo

FOLDER = Path(__file__).parent
OPS_HEAD = """# Ops

One entry per public function, in the order of their files, made from the docstrings by `docs/build.py`.
Conventions that hold for all of them are in [numerics.md](numerics.md). All functions are in `cvops.ops`.
"""
ZOO_HEAD = """# Zoo

Every registered model, made from the registry by `docs/build.py`. Build one with `cvops.create_model(name)`;
`cvops models` prints the same table.

- `create_model(name, num_classes=10, in_chans=1, weights="file.safetensors")` takes checkpoints of the publishers named
  below, recognises whose they are, maps every key, adapts classifier and first convolution, and reports what it did
  (`model.weights_report`). An entry without a place is an error unless `strict=False`.
- A classifier's `model(images)` gives logits `[N, num_classes]`. A detector's takes images of any sizes, and gives
  losses, detections or both: see [Detection](#detection). `model.features(images)` are the maps of
  `model.feature_info`.
- `cvops.save_model(model, "file.safetensors")` keeps weights, name and settings in one file, and
  `cvops.load_model("file.safetensors")` builds the model again.
- `cvops.onnx.export(model, (images,), "file.onnx")` writes standard ONNX operators only; `dynamic_shapes` leaves sizes
  free.
- A batch norm of fixed statistics (in eval mode, or frozen) is no layer of its own on the CPU: the call scales the
  convolution's weights where that is less work, and otherwise, without gradients, applies norm and activation in place.
  `cvops.nn.fuse(model)` returns a copy for inference in which all norms are folded once and for all.
- Settings in brackets are what a publisher's checkpoints need and their keys do not show; `create_model` applies them.
- `tf_` names pad as TensorFlow does (`'same'`, batch-norm epsilon 1e-3); the others as torchvision does.

Outputs equal the peers' with the peers' weights: `tests/models/test_parity.py` copies random weights of torchvision,
timm, pretrainedmodels and efficientnet-pytorch in, at an even and an odd input size; `tests/models/test_golden.py` and
`tests/detection/test_detection_golden.py` compare with stored numbers, `tests/detection/test_detector_peers.py`
detections and losses with torchvision's.
"""
CLASSIFICATION_HEAD = """## Classification

![ImageNet top-1 accuracy against multiply-adds; the area of a marker is the number of parameters](zoo.png)

Multiply-adds are those of convolutions and matrix products for one image of the published size, as
`cvops.models.count_macs(model, size)` counts them; normalisation, activations and pooling are left out. Accuracies are
top-1 on the validation set of ImageNet-1k, one network, one crop, in per cent, as their publisher states them: nothing
here was measured again, and what nobody published is left out. They tell as much about the training recipe as about the
network: the authors' 77.6 and timm's 81.3 for SE-ResNet-50 differ by recipe, image size and the place of the strides.
Of such twins the picture shows the authors'.
"""
DETECTION_HEAD = """## Detection

`model(images, targets)` takes a batch `[B, C, H, W]` or a list of `[C, H, W]` of any sizes, RGB in 0..1, and for each
image a target with `boxes` `[M, 4]` (x1, y1, x2, y2 in pixels) and `labels` `[M]`, 0 to `num_classes - 1`: background
never counts as a class. In train mode it gives the losses; in eval mode detections (`boxes`, `scores`, `labels` of each
image), or losses and detections from one pass where there are targets. `model.detect(pixels)` is the same from a batch
that is ready, tensors of fixed sizes out: what `torch.export` and `cvops.onnx.export` take.

A detector is visible parts, `backbone`, `neck`, `head`, and settings: score and IoU thresholds, the input transform,
losses, assigner and box code are fields of `model.config`, so `create_model(name, score_threshold=0.3)` changes one.
`cvops.models.load_backbone(model, "resnet50", file)` starts training from ImageNet weights;
`examples/train_detector.py` trains one on photographs with handwritten digits:

![Digits found on photographs held out, scores from 0.4](digit_scenes.jpg)

That is FCOS on MobileNetV2 after 300 steps, six minutes on two cores: AP50 0.94 on 100 scenes of other digits and
photographs. SSDLite has 0.87 after 450 steps, seven and a half minutes.

AP is the mean over IoU 0.50 to 0.95 in per cent on COCO val2017, and where it says so on test-dev, or mean AP50 on VOC
2007, and for the region proposal network the average recall of 1,000 proposals; as their publishers state them, nothing
was measured again. The abstracts of the key-point detectors speak of
their best, over several scales.

Publishers number classes in other ways than from 0: torchvision's RetinaNet and FCOS have COCO's category ids
themselves (91 classes), its two-stage detectors and SSD, and EfficientDet, the ids less 1 (90), YOLOv4 and the
key-point detectors the 80 in use. `cvops.data.coco_classes(num_classes)` names them.
"""
TASKS = {"classification": CLASSIFICATION_HEAD, "detection": DETECTION_HEAD}
EXPORTS_HEAD = """### Export

`tests/detection/test_detector_onnx.py` exports small variants of these detectors with batch, height and width free,
runs them at two sizes and batches, and compares with eager: as many detections with the same labels in the same order,
and boxes and scores at most this far apart, with random weights. ONNX Runtime and OpenVINO read the file that
`cvops.onnx.export` writes; `torch.export` is the program that it is made of. Sides must be above the largest stride, as
`torch.export` takes a map of one pixel as fixed. Every other family goes through `torch.export` in
`tests/detection/test_detector_contract.py`. OpenVINO reads no deformable convolution, so of the CenterNets of points it
runs those without.
"""


def entry(name: str) -> str:
    thing = getattr(ops, name)
    signature = str(inspect.signature(thing)).replace("torch.Tensor", "Tensor")
    if thing.__name__ != name:
        return f"### `{name}`\n\nAnother name of `{thing.__name__}`."
    prefix = "class " if inspect.isclass(thing) else ""
    return f"### `{name}`\n\n```python\n{prefix}{name}{signature}\n```\n\n{paragraphs(inspect.getdoc(thing))}"


def paragraphs(doc: str) -> str:
    """Google-style sections as Markdown: `Args:` becomes bold, its entries a list, examples a code block."""
    lines: list[str] = []
    section, in_example = "", False
    for line in re.sub(r":\w+:(`\w+`)", r"\1", doc).splitlines():
        if line.startswith(">>>") and not in_example:
            lines.append("```python")
            in_example = True
        if in_example and not line.strip():
            lines.append("```")
            in_example = False
        if in_example or not line.startswith("    "):
            section = line.rstrip(":") if line in ("Args:", "Returns:", "Raises:") else section
            lines += [f"**{line}**", ""] if line == f"{section}:" else [line]
        elif section == "Returns" or line.startswith("        "):
            lines.append(line.strip() if section == "Returns" else "  " + line.strip())
        else:
            lines.append("- " + line.strip())
    return "\n".join([*lines, *(["```"] if in_example else [])])


def build_ops() -> str:
    parts = [OPS_HEAD]
    for module in sorted(m.name for m in pkgutil.iter_modules(ops.__path__) if not m.name.startswith("_")):
        source = sys.modules[f"cvops.ops.{module}"]
        names = [n for n in vars(source) if n in ops.__all__ and getattr(source, n).__module__ == source.__name__]
        parts.append(f"## {module}\n\n{inspect.getdoc(source)}\n\n" + "\n\n".join(map(entry, names)))
    return "\n".join(parts) + "\n"


def build_zoo() -> str:
    infos = [cvops.model_info(name) for name in cvops.list_models()]
    urls = dict.fromkeys(info.accuracy.url for info in infos if info.accuracy is not None)
    links = {url: str(number) for number, url in enumerate(urls, start=1)}
    parts = [ZOO_HEAD]
    assert {info.task for info in infos} == set(TASKS)
    for task, head in TASKS.items():
        parts.append(head)
        for family in dict.fromkeys(info.family for info in infos if info.task == task):
            members = [info for info in infos if info.family == family]
            rows = classifier_rows(members, links) if task == "classification" else detector_rows(members, links)
            parts.append(f"### {family}\n\n{members[0].paper}\n\n" + "\n".join(rows) + "\n")
    parts.append(EXPORTS_HEAD + "\n" + "\n".join(export_rows()) + "\n")
    return "\n".join(parts) + "\n" + "\n".join(f"[{name}]: {url}" for url, name in links.items()) + "\n"


def classifier_rows(members: list[ModelInfo], links: dict[str, str]) -> list[str]:
    rows = [
        "| model | parameters | multiply-adds | input | top-1 | checkpoints of | package with trained weights |",
        "|---|---:|---:|---|---|---|---|",
    ]
    for info in members:
        package = f"`{info.weights_package}`" if info.weights_package else ""
        rows.append(
            f"| `{info.name}` | {info.parameters:,} | {gigamacs(info.macs)} | {info.preprocess} "
            f"| {accuracy(info.accuracy, links)} | {publishers(info)} | {package} |"
        )
    return rows


def detector_rows(members: list[ModelInfo], links: dict[str, str]) -> list[str]:
    rows = ["| model | parameters | classes | input | AP | checkpoints of |", "|---|---:|---:|---|---|---|"]
    for info in members:
        rows.append(
            f"| `{info.name}` | {info.parameters:,} | {info.config.num_classes} | {info.preprocess} "
            f"| {accuracy(info.accuracy, links)} | {publishers(info)} |"
        )
    return rows


def export_rows() -> list[str]:
    exports = json.loads((FOLDER / "exports.json").read_text())
    runtimes = [key for key in next(iter(exports.values())) if key != "settings"]
    rows = [f"| model | settings | {' | '.join(runtimes)} |", "|---|---|" + "---|" * len(runtimes)]
    for name, row in exports.items():
        settings = ", ".join(f"{key}={value!r}" for key, value in ({"num_classes": 4} | row["settings"]).items())
        cells = [
            f"{boxes:.0e} px, {scores:.0e}" if boxes or scores else "equal" for boxes, scores in map(row.get, runtimes)
        ]
        rows.append(f"| `{name}` | `{settings}` | {' | '.join(cells)} |")
    return rows


def publishers(info: ModelInfo) -> str:
    """Whose checkpoints load, with the settings that they need in brackets."""
    whose = []
    for publisher, changes in info.checkpoints.items():
        settings = []
        for name, value in changes.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                old = getattr(info.config, name)
                fields = (f.name for f in dataclasses.fields(value) if getattr(value, f.name) != getattr(old, f.name))
                settings.append(f"its own {', '.join(fields)} of `{name}`")
            else:
                settings.append(f"{name}={value!r}")
        if publisher != "cvops":
            whose.append(publisher + (f" ({'; '.join(settings)})" if settings else ""))
    return ", ".join(whose)


def gigamacs(macs: int | None) -> str:
    return f"{macs / 1e9:.3f} G" if macs is not None else ""


def accuracy(published: Accuracy | None, links: dict[str, str]) -> str:
    """The figure, linked to where it is published by the name that the page gives to the address."""
    if published is None:
        return ""
    figure, source = str(published).split(" ", 1)
    return f"{figure} [{source}][{links[published.url]}]"


# --- the picture ------------------------------------------------------------------------------------------------------

COLOURS = {
    "MobileNetV2": "#0b9e8e",
    "EfficientNet-Lite": "#7fb31f",
    "EfficientNet": "#1f77c9",
    "ResNet": "#5b6470",
    "ResNeXt": "#b0762a",
    "SENet": "#d1495b",
    "Xception": "#8b5fbf",
    "Inception-ResNet": "#c94f9d",
    "NASNet": "#e08a1e",
    "AmoebaNet": "#8c2d19",
}
# What is left of a name where the colour tells the family.
LABELS = (
    (r"efficientnet_b(\d)", r"B\1"),
    (r"efficientnet_lite(\d)", r"Lite\1"),
    (r"mobilenetv2_(\d)(\d\d)(d?)", r"\1.\2\3"),
    (r"resnet(\d+)", r"\1"),
    (r"resnext(\d+)_(\w+)", r"\1 \2"),
    (r"seresnet(\d+)", r"SE-\1"),
    (r"seresnext(\d+)_(\w+)", r"SE-\1 \2"),
    (r"senet(\d+)", r"SENet-\1"),
    (r"nasneta(large|mobile)", r"NASNet \1"),
    (r"amoebanet_a_(\d+)_(\d+)", r"A (\1, \2)"),
    (r"inception_resnet_v2", "Inception-ResNet-v2"),
    (r"xception", "Xception"),
)
SERIES = ("MobileNetV2", "EfficientNet-Lite", "EfficientNet", "ResNet")  # one network scaled: joined by a line
AREA = 7.0  # points^2 for a million parameters
INK, FAINT = "#22262c", "#e3e6ea"


def label(stem: str) -> str:
    for pattern, text in LABELS:
        if match := re.fullmatch(pattern, stem):
            return match.expand(text)
    return stem


def plotted() -> list[tuple[str, ModelInfo]]:
    """The networks of the picture with their labels: those whose accuracy was measured at the size their multiply-adds
    are for; of twins, the one whose prefix says that it is the authors'."""
    chosen: dict[str, ModelInfo] = {}
    for info in map(cvops.model_info, cvops.list_models(task="classification")):
        stem = info.name.removeprefix("tf_").removeprefix("legacy_")
        comparable = info.accuracy is not None and info.accuracy.size is None and info.macs is not None
        if comparable and (stem not in chosen or info.name != stem):
            chosen[stem] = info
    order = list(dict.fromkeys((*COLOURS, *(info.family for info in chosen.values()))))
    found = sorted(chosen.items(), key=lambda item: (order.index(item[1].family), item[1].macs or 0))
    return [(label(stem), info) for stem, info in found]


def picture_data() -> str:
    """What the picture shows, as text; it is kept inside the picture's file."""
    return json.dumps([[info.name, info.parameters, info.macs, info.accuracy.value] for _, info in plotted()])  # type: ignore[union-attr]


def draw(path: Path) -> None:
    """Accuracy against multiply-adds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.4), dpi=140, facecolor="white")
    axes: Any = figure.add_axes((0.062, 0.085, 0.918, 0.795))
    axes.set_xscale("log")
    axes.set(xlim=(0.045, 160), ylim=(59.2, 87.0))
    points = []
    colours: dict[str, str] = {}
    for family, group in groupby(plotted(), key=lambda item: item[1].family):
        members = [(text, info.macs / 1e9, info.accuracy.value, info.parameters / 1e6) for text, info in group]  # type: ignore[union-attr,operator]
        _, x, y, size = zip(*members, strict=True)
        colour = colours[family] = COLOURS.get(family, INK)
        if family in SERIES:
            axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.55, zorder=2)
        axes.scatter(x, y, [AREA * s for s in size], colour, alpha=0.30, linewidths=0, zorder=3)
        axes.scatter(x, y, 13, colour, linewidths=0, zorder=4)
        points += [(text, colour, *place) for text, *place in members]
    decorate(figure, axes, colours)
    place_labels(axes, FigureCanvasAgg(figure).get_renderer(), points)
    figure.savefig(path, metadata={"Description": picture_data(), "Software": None})


def decorate(figure: Any, axes: Any, colours: dict[str, str]) -> None:
    """Title, ticks, and the two keys: colour by family, and area."""
    figure.text(0.062, 0.945, "Accuracy against multiply-adds", fontsize=19, weight="bold", color=INK)
    figure.text(
        0.062,
        0.905,
        "The networks of the zoo on ImageNet-1k: top-1 accuracy as published, one crop, and what one image costs",
        color=INK,
        fontsize=12,
    )
    axes.set_xlabel("multiply-adds (billions)", fontsize=12, color=INK)
    axes.set_ylabel("top-1 accuracy (%)", fontsize=12, color=INK)
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], color=INK)
    axes.set_xticks([], minor=True)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=11, labelcolor=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    for i, (family, colour) in enumerate(colours.items()):
        row = 72.4 - 1.15 * i
        axes.scatter([19], [row], 75, colour, linewidths=0)
        axes.text(22, row, family, fontsize=12, va="center", color=INK)
    axes.text(4.5, 72.4, "million parameters", fontsize=12, va="center", color=INK)
    row, height = 71.2, 27.8 / 0.795 / (8.4 * 72)  # of a point in per cent of accuracy
    for million in (5, 25, 100, 400):
        radius = (AREA * million / math.pi) ** 0.5 * height
        row -= radius + 0.35
        axes.scatter([6], [row], AREA * million, INK, alpha=0.2, linewidths=0)
        axes.text(8.3, row, str(million), fontsize=12, va="center", color=INK)
        row -= radius


def place_labels(axes: Any, renderer: Any, points: list[tuple[str, str, float, float, float]]) -> None:
    """Each label beside its marker, in that of sixteen places where it covers least of markers and labels."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixel = renderer.dpi / 72
    centres = [axes.transData.transform((x, y)) for _, _, x, y, _ in points]
    dots = [Bbox.from_bounds(x - 3.2 * pixel, y - 3.2 * pixel, 6.4 * pixel, 6.4 * pixel) for x, y in centres]
    placed: list[Any] = []
    for (text, colour, _, _, million), (x, y) in sorted(zip(points, centres, strict=True), key=lambda item: item[0][4]):
        drawn = axes.text(0, 0, text, fontsize=10.5, color=colour, weight="bold", transform=None, zorder=5)
        drawn.set_path_effects([withStroke(linewidth=2.2, foreground="white", alpha=0.75)])
        box = drawn.get_window_extent(renderer)
        choices = []
        for gap in (5, 2 + (AREA * million / math.pi) ** 0.5):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)):
                left = x + dx * (gap * pixel) + (dx - 1) / 2 * box.width
                low = y + dy * (gap * pixel) + (dy - 1) / 2 * box.height
                spot = Bbox.from_bounds(left, low, box.width, box.height)
                outside = box.width * box.height - overlap(spot, axes.bbox)
                covered = sum(overlap(spot, other) for other in (*dots, *placed, *placed))
                choices.append((covered + 2 * outside, len(choices), spot))
        spot = min(choices)[2]
        placed.append(spot)
        drawn.set_position((spot.x0, spot.y0 - box.y0))


def overlap(a: Any, b: Any) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0) * max(height, 0)


PAGES = {"ops.md": build_ops, "zoo.md": build_zoo}

if __name__ == "__main__":
    for page, build in PAGES.items():
        (FOLDER / page).write_text(build())
        print(f"{page} written for cvops {cvops.__version__}")
    draw(FOLDER / "zoo.png")
    print("zoo.png drawn")
