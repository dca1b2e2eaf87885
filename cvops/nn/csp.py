"""Cross-stage partial stages of Darknet's residual blocks. The network that stacks them is
`cvops.models.backbone.cspdarknet`."""

import torch
from torch import Tensor, nn

from cvops.nn.conv import ConvNormAct
from cvops.nn.norm import Norm


class DarknetBlock(nn.Module):
    """Residual block of Darknet-53 (Redmon and Farhadi 2018, arXiv:1804.02767, table 1): 1x1 to `hidden` channels, 3x3
    back, both with norm and activation, and the sum, without one. Parts `conv1`, `conv2`. [N, C, H, W] -> [N, C, H, W].

    >>> DarknetBlock(16, 8)(torch.zeros(1, 16, 4, 4)).shape
    torch.Size([1, 16, 4, 4])
    """

    def __init__(self, channels: int, hidden: int, *, act: str = "mish", norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, hidden, norm=norm, act=act)
        self.conv2 = ConvNormAct(hidden, channels, 3, norm=norm, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(self.conv1(x))
        return y


class CSPStage(nn.Module):
    """Cross-stage partial stage (Wang et al. 2020, arXiv:1911.11929, figure 3), in the form of CSPDarknet-53: a strided
    convolution, then two ways that meet in one, of which only the first has the `depth` residual blocks.
    [N, in_channels, H, W] -> [N, out_channels, H / 2, W / 2].

    whole: both ways have all the channels and the blocks are narrow inside, as in the first stage; otherwise the ways
        have half the channels each.

    Parts: `down` (3x3, stride 2), `skip`, `main`, `blocks`, `transition`, `merge` (1x1).

    >>> CSPStage(8, 16, depth=2)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        whole: bool = False,
        act: str = "mish",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        half = out_channels // 2
        width = out_channels if whole else half

        def unit(before: int, after: int) -> ConvNormAct:
            return ConvNormAct(before, after, norm=norm, act=act)

        self.down = ConvNormAct(in_channels, out_channels, 3, 2, norm=norm, act=act)
        self.skip = unit(out_channels, width)
        self.main = unit(out_channels, width)
        self.blocks = nn.Sequential(*(DarknetBlock(width, half, act=act, norm=norm) for _ in range(depth)))
        self.transition = unit(width, width)
        self.merge = unit(2 * width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y: Tensor = self.merge(torch.cat([self.transition(self.blocks(self.main(x))), self.skip(x)], 1))
        return y
