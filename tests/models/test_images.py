import numpy as np
import pytest
import torch

from monochord.models import ImageProcessor

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_pixels_are_scaled_and_normalised_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels = ImageProcessor(8)(images)["pixel_values"]
    expected = (torch.from_numpy(images).double() / 255 - MEAN) / STD
    torch.testing.assert_close(pixels, expected.permute(0, 3, 1, 2).float())


def test_grey_images_become_three_channels():
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=3)
    process = ImageProcessor(16)
    torch.testing.assert_close(process(grey)["pixel_values"], process(colour)["pixel_values"])


def test_a_list_may_mix_sizes():
    black = [np.zeros((5, 9, 3), np.uint8), np.zeros((12, 4), np.uint8)]
    pixels = ImageProcessor(14)(black)["pixel_values"]
    torch.testing.assert_close(pixels, (-MEAN / STD)[None, :, None, None].expand(2, 3, 14, 14))


def test_other_types_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"images are uint8 .* got torch.float64 \(2, 8, 8\)"):
        ImageProcessor(8)(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match=r"got torch.uint8 \(2, 8, 8, 4\)"):
        ImageProcessor(8)(np.zeros((2, 8, 8, 4), np.uint8))
