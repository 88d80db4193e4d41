"""What MobileNetV2 and EfficientNet-Lite share: features of a picture, dropout and a linear classifier."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

WIDTH = 1280


class PhoneClassifier(nn.Module):
    """`pixel_values` (batch, 3, height, width) to `.logits` (batch, classes), and `.loss` where `labels` are given.

    `features` give (batch, 1280), the mean over places.
    """

    def __init__(self, features: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH, image_size=224, num_labels=num_labels)
        self.features = features
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, num_labels))

    @property
    def base_model(self) -> nn.Module:
        """Everything before the classifier."""
        return self.features

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        logits = self.classifier(self.features(pixel_values))
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
