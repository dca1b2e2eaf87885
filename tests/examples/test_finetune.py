"""The fine-tuning example at small scale: honest draws, frozen stages that stay, and better than a linear baseline."""

import torch

from examples.finetune import FROZEN, accuracy, build, draw, finetune, linear_accuracy, load_photographs


def test_draws_are_balanced_and_disjoint() -> None:
    labels = load_photographs(side=32).labels
    train, test = draw(labels, 10, seed=0)
    assert labels[train].tolist().count(1) == labels[train].tolist().count(0) == 10
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(200))
    assert train.tolist() != draw(labels, 10, seed=1)[0].tolist()


def test_finetuning_beats_a_linear_baseline() -> None:
    photographs = load_photographs(side=64)
    train, test = draw(photographs.labels, 10, seed=10)
    torch.manual_seed(0)
    model = build()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses = finetune(model, photographs.images[train], photographs.labels[train], epochs=5)
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(FROZEN), name
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    right = accuracy(model, photographs.images[test], photographs.labels[test])
    assert right > 0.93
    assert right > linear_accuracy(photographs, train, test)
