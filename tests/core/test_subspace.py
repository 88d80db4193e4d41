"""Subspaces project and compare as their definitions say; streamed statistics equal those of everything at once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monochord.core.subspace import MinibatchCKA, StreamingCovariance, Subspace, cka, randomized_svd


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 99))
def test_project_and_reject_split_orthogonally(k, seed):
    space, x = Subspace.spanned_by(randn(8, k, seed=seed)), randn(5, 8, seed=seed + 1)
    inside, outside = space.project(x), space.reject(x)
    torch.testing.assert_close(inside + outside, x)
    torch.testing.assert_close(space.project(inside), inside)
    torch.testing.assert_close((inside * outside).sum(-1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(space.coordinates(x).norm(dim=-1), inside.norm(dim=-1))
    torch.testing.assert_close(space.complement().project(x), outside)
    assert space.overlap(space.complement()) == pytest.approx(0, abs=1e-12)


def test_of_takes_the_leading_directions():
    matrix = torch.diag(torch.tensor([1.0, 4.0, 2.0]))[:, :3]
    assert torch.equal(Subspace.of(matrix, 1).basis.abs(), torch.tensor([[0.0], [1.0], [0.0]]))
    assert Subspace.of(matrix, energy=16 / 21).k == 1
    assert Subspace.of(matrix, energy=16.1 / 21).k == 2
    assert Subspace.of(randn(7, 3), 2, side="right").dim == 3
    with pytest.raises(ValueError, match=r"k must be an int in \[1, 3\], got 4"):
        Subspace.of(matrix, 4)
    with pytest.raises(ValueError, match="'left' or 'right', got 'up'"):
        Subspace.of(matrix, 1, side="up")
    with pytest.raises(ValueError, match="must be orthonormal"):
        Subspace(torch.ones(4, 2))


def test_principal_angles_and_overlap():
    eye, t = torch.eye(4, dtype=torch.float64), 1e-7
    turned = torch.stack([eye[0] * math.cos(t) + eye[2] * math.sin(t), (eye[1] + eye[3]) / math.sqrt(2)], 1)
    angles = Subspace(eye[:, :2]).principal_angles(Subspace(turned))
    torch.testing.assert_close(angles, torch.tensor([t, math.pi / 4], dtype=torch.float64), atol=1e-12, rtol=1e-7)
    assert Subspace(eye[:, :2]).overlap(Subspace(turned)) == pytest.approx(angles.cos().square().mean().item())
    assert Subspace(eye[:, :1]).overlap(Subspace(eye[:, :3])) == pytest.approx(1)
    with pytest.raises(ValueError, match="of 4 and of 3 dimensions"):
        Subspace(eye).overlap(Subspace(torch.eye(3)))


def test_the_random_control_meets_its_expected_overlap():
    space, like = Subspace.spanned_by(randn(20, 3)), Subspace.spanned_by(randn(20, 5, seed=1))
    overlaps = [space.overlap(like.random_like(seed)) for seed in range(300)]
    assert space.expected_random_overlap(like) == 0.25
    assert sum(overlaps) / 300 == pytest.approx(0.25, abs=0.015)
    assert torch.equal(like.random_like(3).basis, like.random_like(3).basis)


def test_randomized_svd_finds_a_low_rank_matrix():
    matrix = randn(60, 4) @ randn(4, 40, seed=1)
    left, values, right = randomized_svd(matrix, 4)
    torch.testing.assert_close((left * values) @ right, matrix)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[:4])


def test_cka_is_invariant_and_knows_its_bounds():
    x = randn(50, 6)
    rotation = torch.linalg.qr(randn(6, 6, seed=1))[0]
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert cka(x, x @ rotation, unbiased=True) == pytest.approx(1)
    wide = randn(10, 300, seed=2)
    centred = wide - wide.mean(0), x[:10] - x[:10].mean(0)
    gram = [c @ c.T for c in centred]
    expected = (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())
    assert cka(wide, x[:10]) == pytest.approx(expected.item())
    x, y = randn(200, 5, seed=3), randn(200, 5, seed=4)
    feature = (((x - x.mean(0)).T @ (y - y.mean(0))).norm() ** 2).item()
    norms = [((v - v.mean(0)).T @ (v - v.mean(0))).norm().item() for v in (x, y)]
    assert cka(x, y) == pytest.approx(feature / (norms[0] * norms[1]))


def test_unbiased_cka_of_independent_samples_is_zero_where_the_biased_is_not():
    pairs = [(randn(16, 40, seed=i), randn(16, 40, seed=i + 1000)) for i in range(60)]
    unbiased = MinibatchCKA()
    for x, y in pairs:
        unbiased.update(x, y)
    assert abs(unbiased.value) < 0.02
    assert sum(cka(x, y) for x, y in pairs) / 60 > 0.6
    with pytest.raises(ValueError, match="at least 4 samples"):
        cka(randn(3, 2), randn(3, 2), unbiased=True)


def test_unbiased_hsic_equals_its_published_formula():
    x, y = randn(7, 3), randn(7, 2, seed=1)
    k, m = ((v @ v.T) * (1 - torch.eye(7, dtype=torch.float64)) for v in (x, y))
    one = torch.ones(7, dtype=torch.float64)

    def hsic(a, b):
        middle = (one @ a @ one) * (one @ b @ one) / (6 * 5) - 2 / 5 * (one @ a @ b @ one)
        return (torch.trace(a @ b) + middle) / (7 * 4)

    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert cka(x, y, unbiased=True) == pytest.approx(expected.item())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(-1e3, 1e3))
def test_streaming_covariance_equals_all_at_once(sizes, offset):
    batches = [randn(size, 4, seed=i) + offset for i, size in enumerate(sizes)]
    whole = torch.cat(batches)
    streams = StreamingCovariance(), StreamingCovariance()
    for i, batch in enumerate(batches):
        streams[i % 2].update(batch.reshape(1, -1, 4))
    streams[0].merge(streams[1])
    assert streams[0].count == len(whole)
    torch.testing.assert_close(streams[0].mean, whole.mean(0))
    if len(whole) > 1:
        torch.testing.assert_close(streams[0].covariance, torch.cov(whole.T), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="no sample"):
        StreamingCovariance().mean  # noqa: B018
