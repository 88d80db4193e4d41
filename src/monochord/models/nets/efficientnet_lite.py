"""EfficientNet-Lite0: EfficientNet without squeeze-and-excitation and with ReLU6, made for phones.

From "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", May 28, 2019; the Lite variant of March
2020. Padding is TensorFlow's "same", one pixel more at the end than at the beginning where it is odd. Dropping whole
blocks while training is left out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from monochord.models.nets.phone_classifier import WIDTH, PhoneClassifier

STAGES = (  # times wider inside, channels, blocks, stride of the first, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNetLite(PhoneClassifier):
    """Of 1,000 classes of ImageNet, if not told otherwise."""

    def __init__(self, num_labels: int = 1000) -> None:
        super().__init__(Features(), num_labels)


class Features(nn.Module):
    """`stem`, 16 `blocks`, `head`; `pixel_values` (batch, 3, height, width) to (batch, 1280), the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormActivation(3, 32, 3, stride=2)
        self.blocks, channels = nn.ModuleList(), 32
        for expansion, wanted, blocks, stride, kernel in STAGES:
            for block in range(blocks):
                self.blocks.append(MBConv(channels, wanted, kernel, stride if block == 0 else 1, expansion))
                channels = wanted
        self.head = ConvNormActivation(channels, WIDTH, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        mean: Tensor = self.head(hidden).mean(dim=(2, 3))
        return mean


class MBConv(nn.Module):
    """Expand to `expansion` times the channels, filter each, project; added to its input where shapes allow."""

    def __init__(self, channels: int, wanted: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels * expansion
        self.expand = ConvNormActivation(channels, inside, 1) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNormActivation(inside, inside, kernel, stride, groups=inside)
        self.project = ConvNormActivation(inside, wanted, 1, activation=False)
        self.adds = stride == 1 and channels == wanted

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.project(self.depthwise(self.expand(hidden)))
        return hidden + made if self.adds else made


class ConvNormActivation(nn.Module):
    """`conv` with padding "same", batch `norm`, and ReLU6 unless `activation` is false."""

    def __init__(
        self, channels: int, wanted: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, wanted, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(wanted, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU6() if activation else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        edges = []
        for side in (hidden.shape[3], hidden.shape[2]):
            steps = -(-side // self.conv.stride[0])
            missing = max((steps - 1) * self.conv.stride[0] + self.conv.kernel_size[0] - side, 0)
            edges += [missing // 2, missing - missing // 2]
        made: Tensor = self.act(self.norm(self.conv(pad(hidden, edges))))
        return made
