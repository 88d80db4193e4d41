"""The modulator is a tuner like others, on a net with running statistics."""

import torch
import transformers as hf

from monochord.adapt.soft_hebbian import ChannelModulator
from monochord.testing import check_tuner


def test_the_modulator_passes_the_kit():
    torch.manual_seed(0)
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
    model = hf.ResNetForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    check_tuner(lambda: ChannelModulator("resnet.embedder.embedder:out", 8), model, batch)
