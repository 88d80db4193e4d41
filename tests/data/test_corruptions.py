"""Spoilt pictures stay pictures, are spoilt more by more, and blur keeps what it should."""

import pytest
import torch

from monochord.data import DataError
from monochord.data.corruptions import CORRUPTIONS, corrupt


def pictures(n=6, channels=1):
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 8, 8, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_range_shape_and_severity(kind, channels):
    x = pictures(channels=channels)
    before = x.clone()
    distance = []
    for severity in range(1, 6):
        y = corrupt(x, kind, severity, torch.Generator().manual_seed(1))
        assert y.shape == x.shape and y.dtype == x.dtype
        assert y.min() >= 0 and y.max() <= 1
        distance.append(float((y - x).abs().mean()))
    assert torch.equal(x, before)
    assert distance == sorted(distance) and distance[-1] > 1.5 * distance[0] > 0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_generator_decides(kind):
    x = pictures()
    a, b, c = (corrupt(x, kind, 4, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    drawn = kind.endswith("noise") or kind in ("motion blur", "fog")
    assert torch.equal(a, c) != drawn


@pytest.mark.parametrize("kind", ["gaussian blur", "defocus blur", "motion blur", "pixelate", "contrast"])
def test_an_even_picture_stays_even(kind):
    x = torch.full((3, 1, 32, 32), 0.3)
    torch.testing.assert_close(corrupt(x, kind, 5, torch.Generator().manual_seed(0)), x)


def test_gaussian_noise_has_its_sd():
    x = torch.full((20, 1, 32, 32), 0.5)
    y = corrupt(x, "gaussian noise", 1, torch.Generator().manual_seed(0))
    assert abs(float((y - x).std()) - 0.08) < 0.003


def test_errors_teach():
    x = pictures(1)
    with pytest.raises(DataError, match="did you mean motion blur"):
        corrupt(x, "motionblur")
    with pytest.raises(DataError, match="use 1 to 5"):
        corrupt(x, "fog", 6)
    with pytest.raises(DataError, match="channels, height"):
        corrupt(x[0], "fog")
