"""The public implementations that the zoo is compared with: which of them has a model of the same name, how to build
it quickly, and random weights that leave no layer without influence."""

import functools
import math
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn

import cvops
from cvops.models import Model, load_weights

# torchvision has one MobileNetV2, of any width.
TORCHVISION_WIDTHS = {f"mobilenetv2_{width:03d}": width / 100 for width in (35, 50, 75, 100, 140)}
TORCHVISION_NAMES = {f"mobilenetv3_{table}_100": f"mobilenet_v3_{table}" for table in ("large", "small")}


def _torchvision(name: str) -> nn.Module | None:
    if name in TORCHVISION_WIDTHS:
        return torchvision.models.mobilenet_v2(weights=None, width_mult=TORCHVISION_WIDTHS[name])
    name = TORCHVISION_NAMES.get(name, name)
    known = name in torchvision.models.list_models(torchvision.models)
    return torchvision.models.get_model(name, weights=None) if known else None


# Models that the peers list under another name.
TIMM_NAMES = {"xception": "legacy_xception"}
PRETRAINEDMODELS_NAMES = {
    "xception": "xception",
    "inception_resnet_v2": "inceptionresnetv2",
    "nasnetalarge": "nasnetalarge",
    "nasnetamobile": "nasnetamobile",
    "legacy_seresnet50": "se_resnet50",
    "legacy_seresnet101": "se_resnet101",
    "legacy_seresnet152": "se_resnet152",
    "legacy_seresnext50_32x4d": "se_resnext50_32x4d",
    "legacy_seresnext101_32x4d": "se_resnext101_32x4d",
    "legacy_senet154": "senet154",
}


def _timm(name: str) -> nn.Module | None:
    name = TIMM_NAMES.get(name, name)
    return timm.create_model(name, pretrained=False) if name in timm.list_models() else None


def _pretrainedmodels(name: str) -> nn.Module | None:
    import pretrainedmodels

    if name not in PRETRAINEDMODELS_NAMES:
        return None
    peer = getattr(pretrainedmodels, PRETRAINEDMODELS_NAMES[name])(num_classes=1000, pretrained=None)
    # Its pooling has the size of the last map at the size of its weights, e.g. 7 x 7; the mean is that at any size.
    for child, layer in peer.named_children():
        if isinstance(layer, nn.AvgPool2d):
            setattr(peer, child, nn.AdaptiveAvgPool2d(1))
    return peer


def _efficientnet_pytorch(name: str) -> nn.Module | None:
    try:
        from efficientnet_pytorch import EfficientNet
        from efficientnet_pytorch.utils import efficientnet, efficientnet_params
    except ImportError:
        return None
    size = name.removeprefix("tf_efficientnet_")
    if size not in {f"b{i}" for i in range(9)} or not name.startswith("tf_"):
        return None
    width, depth, _, dropout = efficientnet_params(f"efficientnet-{size}")
    # image_size None is its mode that pads by the size of the input, as TensorFlow does.
    blocks, settings = efficientnet(width, depth, image_size=None, dropout_rate=dropout)
    return EfficientNet(blocks, settings)


PEERS: dict[str, Callable[[str], nn.Module | None]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pretrainedmodels": _pretrainedmodels,
    "efficientnet-pytorch": _efficientnet_pytorch,
}


def build_peer(publisher: str, name: str, seed: int = 0) -> nn.Module | None:
    """The publisher's model in eval mode with random weights, or None if it has none of that name."""
    peer = build_meta_peer(publisher, name)
    return None if peer is None else randomise(peer.to_empty(device="cpu"), seed, smallest_side(name)).eval()


def build_meta_peer(publisher: str, name: str) -> nn.Module | None:
    """The publisher's model without memory for its weights."""
    with torch.device("meta"):
        return PEERS[publisher](name)


@functools.cache
def smallest_side(name: str) -> int:
    """Of images to compare with: 64 pixels, or more where the network needs more."""
    with torch.device("meta"):
        return max(64, cvops.create_model(name).backbone.min_size)


def sizes(name: str, publisher: str) -> list[tuple[int, int]]:
    """Two image sizes, one of them odd and not square. The Mobile port of pretrainedmodels pads by fixed amounts, which
    are right only where the maps after the first are even."""
    if (name, publisher) == ("nasnetamobile", "pretrainedmodels"):
        return [(64, 64), (63, 32)]
    side = smallest_side(name)
    return [(side, side), (side + 1, 49 if side == 64 else side)]


def build_ours(publisher: str, name: str, state: dict[str, Tensor]) -> Model:
    """Our model of that name in eval mode, with the publisher's settings and weights."""
    with torch.device("meta"):
        model = cvops.create_model(name, **cvops.model_info(name).checkpoints[publisher])
    model = model.to_empty(device="cpu").eval()
    report = load_weights(model, state)
    assert report.complete
    assert publisher in report.publisher.split(" or ")
    return model


def randomise(model: nn.Module, seed: int = 0, side: int = 64) -> nn.Module:
    """Fills every parameter and running statistic at random, so that a forgotten layer, or one mapped wrongly, shows.

    The running statistics are drawn around those of a batch of noise, layer by layer, with one variance for all
    channels of a layer: drawn blindly, the input's influence dies out in a deep network and any two networks agree;
    taken from the batch as they are, channels that hardly vary would blow up rounding errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = model.state_dict()
        for key, value in state.items():
            if value.dim() >= 2:
                # Gates, the only convolutions with biases, multiply: at full strength deep networks turn chaotic.
                gate = value.dim() == 4 and key.removesuffix("weight") + "bias" in state
                deviation = (0.3 if gate else 1) * math.sqrt(2 / math.prod(value.shape[1:]))
                value.normal_(0, deviation, generator=generator)
            elif key.endswith("num_batches_tracked"):
                value.zero_()
            elif key.endswith("weight"):
                value.uniform_(0.6, 1.4, generator=generator)
            else:
                value.normal_(0, 0.1, generator=generator)

        def set_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3)).mean()
            noise = torch.randn(mean.shape, generator=generator)
            norm.get_buffer("running_mean").copy_(mean + 0.1 * variance.sqrt() * noise)
            norm.get_buffer("running_var").uniform_(1.0, 2.0, generator=generator).mul_(variance)

        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
        model.eval()(images(4, side, side))
        for hook in hooks:
            hook.remove()
    return model


def images(count: int, height: int, width: int) -> Tensor:
    """Noise of a different brightness in each image, [count, 3, height, width]."""
    noise = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return noise + torch.linspace(-0.5, 0.5, count).view(-1, 1, 1, 1)
