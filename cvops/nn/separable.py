"""The separable convolution that Xception, NASNet and AmoebaNet are made of, and the pair of them that the last two
apply. The depthwise half runs through `cvops.ops.depthwise_conv2d`; single convolutions are in `conv.py`."""

from torch import Tensor, nn

from cvops.nn.conv import ConvNormAct, Padding
from cvops.nn.norm import Norm
from cvops.ops.depthwise_conv2d import DepthwiseConv2d


class SeparableConvNormAct(nn.Module):
    """Depthwise and pointwise convolution with nothing in between, then normalisation and activation (Chollet 2017,
    arXiv:1610.02357): parts `depthwise`, `pointwise` (a `ConvNormAct`, so `fuse` folds its norm). `norm`, `act` and
    `bias` are as there: None leaves the first two out, and the bias is where there is no norm.

    [N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride], sizes rounded up.

    >>> SeparableConvNormAct(16, 24, 5, stride=2, padding="same")(torch.zeros(1, 16, 9, 8)).shape
    torch.Size([1, 24, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        padding: Padding = "symmetric",
        norm: Norm | None = nn.BatchNorm2d,
        act: str | None = "relu",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        fixed = padding == "symmetric" or (stride == 1 and kernel_size % 2 == 1)
        self.depthwise = DepthwiseConv2d(
            in_channels,
            kernel_size,
            stride=stride,
            padding=(kernel_size - 1) // 2 * dilation if fixed else "same",
            dilation=dilation,
            bias=False,
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, norm=norm, act=act, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class SeparableTwice(nn.Sequential):
    """A separable convolution applied twice, the first of them strided and to the new width, with a ReLU in between:
    the `sep 3x3` of NASNet and AmoebaNet (Zoph et al. 2018, appendix A.4), less the ReLU in front.

    >>> SeparableTwice(16, 24, 5, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: Padding = "symmetric",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            SeparableConvNormAct(in_channels, out_channels, kernel_size, stride, padding=padding, norm=norm),
            SeparableConvNormAct(out_channels, out_channels, kernel_size, padding=padding, norm=norm, act=None),
        )
