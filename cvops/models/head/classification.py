"""The classification head: pooling, dropout and a linear layer, after a widening 1x1 convolution where a family has
one. The backbone in front of it and the assembly of the two are elsewhere (`classifier.py`)."""

from torch import Tensor, nn

from cvops.nn import ConvNormAct, Norm, make_activation


class ClassificationHead(nn.Module):
    """[N, in_channels, H, W] -> logits [N, num_classes], or pooled features [N, out_channels] when `num_classes` is 0.

    Parts: `conv` (1x1 to `conv_channels`, absent when None), mean over the map, `hidden` (a linear layer to
    `hidden_channels` and the activation, absent when None), `dropout`, `fc`.

    >>> ClassificationHead(320, 10, conv_channels=1280)(torch.zeros(2, 320, 7, 7)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        conv_channels: int | None = None,
        hidden_channels: int | None = None,
        dropout: float = 0.0,
        norm: Norm = nn.BatchNorm2d,
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.out_channels = conv_channels if conv_channels is not None else in_channels
        self.conv = (
            ConvNormAct(in_channels, conv_channels, norm=norm, act=act) if conv_channels is not None else nn.Identity()
        )
        self.hidden: nn.Module = nn.Identity()
        if hidden_channels is not None:
            self.hidden = nn.Sequential(nn.Linear(self.out_channels, hidden_channels), make_activation(act))
            self.out_channels = hidden_channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.out_channels, num_classes) if num_classes > 0 else nn.Identity()

    @property
    def class_keys(self) -> tuple[str, ...]:
        """State_dict entries with a row for each class; named even where there is no classifier."""
        return ("fc.weight", "fc.bias")

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.hidden(self.conv(x).mean((2, 3)))
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits
