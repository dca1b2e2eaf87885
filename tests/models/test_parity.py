"""Every registered model against the models of the same name in torchvision, timm and efficientnet-pytorch, with their
random weights read by our loader. Parametrised over the registry: a new model is tested without writing a test."""

import gc

import pytest
import torch
from peers import PEERS, build_ours, build_peer, images, sizes

import cvops
from cvops.models import registry

TOLERANCE = 1e-4  # of the largest output, float32
LARGE = 50_000_000  # parameters


def publishers(name: str) -> list[str]:
    """Those to compare a model with. Large ones are not compared twice where two publishers name all layers alike;
    their smaller relatives are."""
    info, maps = cvops.model_info(name), {m.publisher: m for m in registry._MODELS[name].key_maps}
    known = [publisher for publisher in info.checkpoints if publisher in PEERS]
    layouts = [maps[publisher].modules(info.config) for publisher in known]
    return [p for i, p in enumerate(known) if info.parameters < LARGE or layouts[i] not in layouts[:i]]


PAIRS = [(name, publisher) for name in cvops.list_models(task="classification") for publisher in publishers(name)]


@pytest.mark.parametrize(("name", "publisher"), PAIRS)
def test_outputs_equal_the_peers(name: str, publisher: str) -> None:
    peer = build_peer(publisher, name)
    if peer is None:
        assert publisher == "efficientnet-pytorch"  # not installed, or without the Lite models of its fork
        pytest.skip(f"{publisher} has no {name}")
    model = build_ours(publisher, name, peer.state_dict())
    for height, width in sizes(name, publisher):
        batch = images(2, height, width)
        with torch.inference_mode():
            want, got = peer(batch), model(batch)
        assert (want[0] - want[1]).abs().max() > 0.01 * want.abs().max(), "the weights hide the input"
        assert (want - got).abs().max() < TOLERANCE * want.abs().max()
    del peer, model
    gc.collect()
