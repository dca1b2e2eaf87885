"""Every registered model against the models of the same name at its publishers', with their random weights read by our
loader. Parametrised over the registry: a new model is tested without writing a test."""

import gc

import pytest
import torch
from peers import PEERS, build_meta_peer, build_ours, build_peer, images, sizes
from test_golden import CASES

import cvops
from cvops.models import load_weights

TOLERANCE = 1e-4  # of the largest output, float32
LARGE = 10_000_000  # parameters
STORED = set(CASES.values())


def publishers(name: str) -> list[str]:
    return [publisher for publisher in cvops.model_info(name).checkpoints if publisher in PEERS]


def is_computed(name: str, publisher: str) -> bool:
    """Large models are computed by `test_golden.py` or, without a stored case, with one publisher's weights; of the
    others' weights the keys are checked. Their smaller relatives are computed with everybody's."""
    if cvops.model_info(name).parameters < LARGE:
        return True
    return name not in STORED and publisher == publishers(name)[0]


PAIRS = [(name, publisher) for name in cvops.list_models(task="classification") for publisher in publishers(name)]


def skip_without(peer: object, name: str, publisher: str) -> None:
    if peer is None:
        assert publisher == "efficientnet-pytorch"  # not installed, or without the Lite models of its fork
        pytest.skip(f"{publisher} has no {name}")


@pytest.mark.parametrize(("name", "publisher"), [pair for pair in PAIRS if is_computed(*pair)])
def test_outputs_equal_the_peers(name: str, publisher: str) -> None:
    peer = build_peer(publisher, name)
    skip_without(peer, name, publisher)
    assert peer is not None
    model = build_ours(publisher, name, peer.state_dict())
    for height, width in sizes(name, publisher):
        batch = images(2, height, width)
        with torch.inference_mode():
            want, got = peer(batch), model(batch)
        assert (want[0] - want[1]).abs().max() > 0.01 * want.abs().max(), "the weights hide the input"
        assert (want - got).abs().max() < TOLERANCE * want.abs().max()
    del peer, model
    gc.collect()


@pytest.mark.parametrize(("name", "publisher"), [pair for pair in PAIRS if not is_computed(*pair)])
def test_keys_of_the_peers_have_a_place(name: str, publisher: str) -> None:
    peer = build_meta_peer(publisher, name)
    skip_without(peer, name, publisher)
    assert peer is not None
    with torch.device("meta"):
        model = cvops.create_model(name, **cvops.model_info(name).checkpoints[publisher])
        assert load_weights(model, peer.state_dict(), source=publisher).complete
