"""Trains a network of the zoo from nothing on real handwritten digits, in about a minute on two cores.

    python examples/train_digits.py                      # a ResNet with one block a stage
    python examples/train_digits.py --variant ic         # its blocks {ReLU, batch norm, dropout, convolution}
    python examples/train_digits.py --variant dropblock  # blocks of 2 x 2 dropped from the last two stages

The digits are scikit-learn's: 1797 grey images of 8 x 8 pixels. The last 360 in the order of the file are the test set:
a run looks at them once, after the last epoch, and chooses nothing by them. A shuffled split would be easier, because
neighbours in the file are alike: the nearest training image names 95.6 % of this test set rightly, 98.8 % of a shuffled
one. Needs `pip install scikit-learn`. `--seed` fixes weights, batches, shifts and drops."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cvops
from cvops.nn import set_drop_progress

TEST = 360  # images held out
BATCH = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ic": {"ic_dropout": 0.05},
    "dropblock": {"drop_block": 0.1, "drop_block_size": 2},
}


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, side, side] of mean 0 and deviation 1 over the training set, and labels [N]."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Result:
    """Mean training loss of each epoch, the share of test images named rightly, and how long training took."""

    losses: list[float]
    accuracy: float
    seconds: float


def load_digits(side: int = 48) -> Digits:
    """The digits, enlarged from 8 x 8 to `side` x `side` pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = F.interpolate(torch.tensor(data.images)[:, None].float(), (side, side), mode="bilinear")
    labels = torch.tensor(data.target)
    deviation, mean = torch.std_mean(images[:-TEST])
    images = (images - mean) / deviation
    return Digits(images[:-TEST], labels[:-TEST], images[-TEST:], labels[-TEST:])


def build(variant: str) -> nn.Module:
    """ResNet with one basic block a stage; 48 pixels become 12, 6, 3 and 2."""
    settings = VARIANTS[variant]
    return cvops.create_model("resnet18", num_classes=10, in_chans=1, depths=(1, 1, 1, 1), **settings)


def shifted(images: Tensor) -> Tensor:
    """Every image moved by up to a twelfth of its side each way; what comes in repeats the border."""
    side = images.shape[-1]
    top, left = torch.randint(-(side // 12), side // 12 + 1, (2, len(images), 1))
    rows = (torch.arange(side) + top).clamp(0, side - 1)
    columns = (torch.arange(side) + left).clamp(0, side - 1)
    return images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def train(model: nn.Module, digits: Digits, epochs: int, say: Callable[[str], None] = print) -> Result:
    """SGD with one cycle of the learning rate; a scheduled DropBlock reaches its rate at the end."""
    steps = -(-len(digits.labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * steps, pct_start=0.2)
    losses = []
    started = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        set_drop_progress(model, epoch / max(1, epochs - 1))
        for batch in torch.randperm(len(digits.labels)).split(BATCH):
            loss = F.cross_entropy(model(shifted(digits.images[batch])), digits.labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / len(digits.labels))
        say(f"epoch {epoch + 1:2}  training loss {losses[-1]:.3f}  {time.perf_counter() - started:5.1f} s")
    seconds = time.perf_counter() - started
    return Result(losses, accuracy(model, digits.test_images, digits.test_labels), seconds)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(images).argmax(1) == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=list(VARIANTS), default="plain")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    digits = load_digits()
    model = build(arguments.variant)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(digits.labels)} images to learn from")
    result = train(model, digits, arguments.epochs)
    print(f"{100 * result.accuracy:.2f} % of {TEST} test images named rightly after {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
