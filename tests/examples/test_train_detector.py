"""The detector example at small scale: its scenes are what they say, its split holds, and its models start to learn."""

import pytest
import torch

from examples.train_detector import HELD_OUT, MODELS, PHOTOGRAPHS, DigitScenes, build, load_digits, overlap, train


def test_scenes_hold_their_digits() -> None:
    scenes = DigitScenes("train", seed=1)
    for _ in range(20):
        image, target = scenes.scene()
        assert image.shape == (3, 192, 192)
        assert image.min() >= 0
        assert image.max() <= 1
        boxes = target["boxes"].tolist()
        assert 1 <= len(boxes) == len(target["labels"]) <= 4
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 <= x1 < x2 <= 192
            assert 0 <= y1 < y2 <= 192
            assert not any(overlap(boxes[i], other) for other in boxes[:i])
    again, first = DigitScenes("train", seed=1), DigitScenes("train", seed=1)
    assert torch.equal(again.scene()[0], first.scene()[0])


def test_scenes_held_out_share_neither_digits_nor_photographs() -> None:
    digits, labels = load_digits()
    train_scenes, test_scenes = DigitScenes("train", 0), DigitScenes("test", 0)
    assert len(test_scenes.digits) == HELD_OUT
    assert torch.equal(torch.cat([train_scenes.digits, test_scenes.digits]), digits)
    assert torch.equal(torch.cat([train_scenes.labels, test_scenes.labels]), labels)
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    losses, _ = train(build(name), steps=16, batch=4, say=lambda line: None)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
