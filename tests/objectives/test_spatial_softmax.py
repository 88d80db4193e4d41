"""The encoder of places: exact coordinates, sizes, two inputs, and embeddings made ahead of time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monochord.objectives.spatial_softmax import PixelDecoder, SpatialSoftmax, SpatialSoftmaxEncoder, encoded


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.data())
def test_a_spike_is_where_it_is(height, width, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    maps = torch.zeros(1, 1, height, width)
    maps[0, 0, row, column] = 1e4
    wanted = [[2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1]]
    torch.testing.assert_close(SpatialSoftmax()(maps), torch.tensor(wanted))


def small(**options):
    torch.manual_seed(0)
    return SpatialSoftmaxEncoder(24, (4, 6), keypoints=5, width=8, **options)


@pytest.mark.parametrize("side,strides", [(84, (2, 2, 1, 1)), (120, (2, 2, 1, 1)), (32, (2, 1, 1, 1)), (16, (1,) * 4)])
def test_maps_stay_wide_enough_at_any_size(side, strides):
    made = SpatialSoftmaxEncoder(side, (4, 4, 4, 4), keypoints=3)
    convolutions = [layer for layer in made.maps if getattr(layer, "kernel_size", None) == (3, 3)]
    assert tuple(layer.stride[0] for layer in convolutions) == strides
    assert made(torch.rand(2, 3, side, side)).shape == (2, 64)


def test_bytes_and_shares_of_one_are_the_same_picture():
    pictures = torch.randint(256, (3, 3, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(small()(pictures), small()(pictures / 255))


def test_a_robots_own_state_takes_half_of_the_embedding():
    made, pictures = small(proprioception=3), torch.rand(2, 3, 24, 24)
    one, other = made(pictures, torch.ones(2, 3)), made(pictures, torch.randn(2, 3))
    assert one.shape == (2, 8) and torch.equal(one[:, :4], other[:, :4]) and not torch.equal(one[:, 4:], other[:, 4:])
    with pytest.raises(ValueError, match="pictures and states"):
        made(pictures)
    with pytest.raises(ValueError, match="pictures alone"):
        small()(pictures, torch.ones(2, 3))


def test_embeddings_made_ahead_are_those_made_on_the_way_and_leave_the_encoder_alone():
    made = torch.nn.Sequential(small(), torch.nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    pictures = torch.rand(7, 3, 24, 24)
    found = encoded(made, pictures, batch_size=3)
    assert made.training and not found.requires_grad
    torch.testing.assert_close(found, made.eval()(pictures), atol=1e-6, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_decoder_makes_pictures_of_its_side():
    assert PixelDecoder(5, side=24, channels=4)(torch.randn(2, 5)).shape == (2, 3, 24, 24)
    with pytest.raises(ValueError, match="such as 24"):
        PixelDecoder(5, side=20)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="1 strides for 2 channels"):
        SpatialSoftmaxEncoder(32, (4, 4), (2,))
    with pytest.raises(ValueError, match="larger pictures"):
        SpatialSoftmaxEncoder(8, (4, 4, 4))


def test_an_untrained_encoder_looks_somewhere():
    maps = small().maps(torch.rand(8, 3, 24, 24) - 0.5)
    weights = maps.flatten(2).softmax(-1)
    assert weights.amax(-1).mean() > 2 / weights.shape[-1]  # flat maps would have the share of one pixel
