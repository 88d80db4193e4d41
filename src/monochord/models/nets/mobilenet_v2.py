"""MobileNetV2: inverted residual blocks that expand, filter each channel on its own, and project without an activation.

From "MobileNetV2: Inverted Residuals and Linear Bottlenecks", January 13, 2018. Parameters are named as torchvision's.
"""

from __future__ import annotations

from torch import Tensor, nn

from monochord.models.nets.phone_classifier import WIDTH, PhoneClassifier

STAGES = (  # times wider inside, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(PhoneClassifier):
    """Of 1,000 classes of ImageNet, if not told otherwise."""

    def __init__(self, num_labels: int = 1000) -> None:
        super().__init__(Features(), num_labels)


class Features(nn.Sequential):
    """Stem, 17 blocks and head; `pixel_values` (batch, 3, height, width) to (batch, 1280), the mean over places."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [ConvNormActivation(3, 32, 3, stride=2)]
        channels = 32
        for expansion, wanted, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, wanted, stride if block == 0 else 1, expansion))
                channels = wanted
        layers.append(ConvNormActivation(channels, WIDTH, 1))
        super().__init__(*layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = pixel_values
        for layer in self:
            hidden = layer(hidden)
        return hidden.mean(dim=(2, 3))


class InvertedResidual(nn.Module):
    """Expand to `expansion` times the channels, filter each, project; added to its input where shapes allow."""

    def __init__(self, channels: int, wanted: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels * expansion
        expand = [ConvNormActivation(channels, inside, 1)] if expansion != 1 else []
        filter_each = ConvNormActivation(inside, inside, 3, stride=stride, groups=inside)
        self.conv = nn.Sequential(
            *expand, filter_each, nn.Conv2d(inside, wanted, 1, bias=False), nn.BatchNorm2d(wanted)
        )
        self.adds = stride == 1 and channels == wanted

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.conv(hidden)
        return hidden + made if self.adds else made


class ConvNormActivation(nn.Sequential):
    """Convolution that keeps the size (up to its stride), batch norm, ReLU6."""

    def __init__(self, channels: int, wanted: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(channels, wanted, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(wanted), nn.ReLU6(inplace=False))
