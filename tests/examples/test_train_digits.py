"""The digits example at small scale: it learns to read the held-out digits, and its variants learn."""

import pytest
import torch

from cvops.nn import IndependentComponent
from cvops.nn.drop import ScheduledDropBlock2d
from examples.train_digits import TEST, Digits, build, load_digits, shifted, train


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(side=24)


def test_split_holds_the_end_of_the_file_out(digits: Digits) -> None:
    from sklearn.datasets import load_digits as load_source

    labels = load_source().target.tolist()
    assert digits.labels.tolist() == labels[:-TEST]
    assert digits.test_labels.tolist() == labels[-TEST:]
    assert abs(digits.images.mean()) < 1e-5  # scaled by what is learned from alone
    assert abs(digits.test_images.mean()) > 1e-4


def test_shifts_move_whole_images() -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[..., 10, 12] = 1.0
    torch.manual_seed(0)
    spots = shifted(image.expand(200, 1, 24, 24)).flatten(1).argmax(1)
    assert {int(spot) // 24 - 10 for spot in spots} == {-2, -1, 0, 1, 2}
    assert {int(spot) % 24 - 12 for spot in spots} == {-2, -1, 0, 1, 2}


def test_learns_to_read_digits(digits: Digits) -> None:
    torch.manual_seed(0)
    result = train(build("plain"), digits, epochs=3, say=lambda line: None)
    assert result.losses == sorted(result.losses, reverse=True)
    assert result.accuracy > 0.9


@pytest.mark.parametrize(("variant", "layer"), [("ic", IndependentComponent), ("dropblock", ScheduledDropBlock2d)])
def test_variants_learn(digits: Digits, variant: str, layer: type) -> None:
    few = Digits(digits.images[:320], digits.labels[:320], digits.test_images[:1], digits.test_labels[:1])
    torch.manual_seed(0)
    model = build(variant)
    assert any(isinstance(module, layer) for module in model.modules())
    losses = train(model, few, epochs=3, say=lambda line: None).losses
    assert losses[2] < 0.85 * losses[0]
