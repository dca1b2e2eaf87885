"""VGG-16 as SSD takes it: without its classifier, the fully connected layers made convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvops.models.model import Backbone, FeatureInfo
from cvops.nn import ConvNormAct

# Convolutions of each block and their width: configuration D of Simonyan and Zisserman 2014, arXiv:1409.1556.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
FC_CHANNELS = 1024
SCALE = 20.0  # of the normalised map at the start


class VGG16SSD(Backbone):
    """[B, in_chans, H, W] -> conv4_3 at stride 8, each pixel scaled to length 1 over the channels and then, channel by
    channel, by the learned `scale_weight`; and fc7 at stride 16 (Liu et al. 2016, arXiv:1512.02325, section 3.1).

    Parts: `blocks` (3x3 convolutions with ReLU, a max pool between them; after the third it keeps a partial window),
    `fc6` (3x3, dilation 6, after a max pool without stride), `fc7` (1x1).

    >>> [list(m.shape) for m in VGG16SSD(3).features(torch.zeros(1, 3, 64, 64))]
    [[1, 512, 8, 8], [1, 1024, 4, 4]]
    """

    feature_info = FeatureInfo((512, FC_CHANNELS), (8, 16))
    input_keys = ("blocks.0.0.conv.weight",)
    min_size = 16

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = in_chans
        for count, width in BLOCKS:
            units = []
            for _ in range(count):
                units.append(ConvNormAct(channels, width, 3, norm=None))
                channels = width
            self.blocks.append(nn.Sequential(*units))
        self.fc6 = ConvNormAct(channels, FC_CHANNELS, 3, dilation=6, norm=None)
        self.fc7 = ConvNormAct(FC_CHANNELS, FC_CHANNELS, norm=None)
        self.scale_weight = nn.Parameter(torch.full((512,), SCALE))

    def features(self, x: Tensor) -> list[Tensor]:
        fourth = x
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = F.max_pool2d(x, 2, 2, ceil_mode=i == 3)
            x = block(x)
            if i == 3:
                fourth = x
        last = self.fc7(self.fc6(F.max_pool2d(x, 3, 1, padding=1)))
        return [self.scale_weight[:, None, None] * F.normalize(fourth), last]
