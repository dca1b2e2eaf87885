"""Counting multiply-adds: torch's own counter, told about the convolutions of `cvops.ops`. The counts of the registered
models at their published sizes are in the family files."""

import torch

from cvops.models.model import Model


def count_macs(model: Model, size: int | tuple[int, int]) -> int:
    """Multiply-adds of one image through `model` in eval mode: those of convolutions and matrix products, as papers
    count them. Normalisation, activations, pooling and additions are left out.

    model: its weights are not read and its training mode stays; it may be on any device, "meta" included.
    size: height and width of the image in pixels, or one number for both.

    Raises the model's `ValueError` for a size that it does not take.

    >>> count_macs(cvops.create_model("mobilenetv2_100"), 224)  # 300 million in the paper
    300774272
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, because it would slow down `import cvops` by a third

    height, width = (size, size) if isinstance(size, int) else size
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in weights.items()}
    modes = [(module, module.training) for module in model.modules()]
    counter = FlopCounterMode(display=False, custom_mapping=_CONVOLUTIONS)
    model.eval()
    try:
        with counter, torch.inference_mode():
            image = torch.empty(1, model.config.in_chans, height, width, device="meta")
            torch.func.functional_call(model, shapes, image)
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def _flops(input: torch.Size, weight: torch.Size, *args: object, out_shape: torch.Size, **kwargs: object) -> int:
    """Two for each element of the output and weight it reads; weight [out channels, channels of a group, kh, kw]."""
    return 2 * out_shape.numel() * weight[1:].numel()


_CONVOLUTIONS = {torch.ops.cvops.depthwise_conv2d: _flops, torch.ops.cvops.deform_conv2d: _flops}
