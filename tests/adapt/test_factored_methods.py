"""Methods whose change is a product of small parts: Tucker, random subspaces, hypernetworks."""

import math

import pytest
import scipy.linalg
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from monochord.adapt.flora import FLoRA, TuckerChange
from monochord.adapt.hypernetwork import Hypernetwork, condition, encode, predicted
from monochord.adapt.intrinsic_dimension import SubspaceTuning, intrinsic_dimension, occam_bound
from monochord.adapt.lora import LoRA
from monochord.core.delta import Delta
from monochord.core.fastfood import Fastfood, fwht
from monochord.core.tucker import Tucker, multiply, unfold
from monochord.testing import check_tuner

LAYERS = [
    nn.Conv1d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, dilation=2), nn.Conv3d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Embedding(9, 4),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_tucker_on_every_kind_of_layer(layer):
    model = nn.Sequential(layer).double()
    dims = len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0
    x = torch.arange(6).reshape(2, 3) if isinstance(layer, nn.Embedding) else torch.randn(2, 4, *[9] * dims).double()
    check_tuner(lambda: FLoRA(sites="0.weight", rank=2, spatial_rank=2), model, {"input": x}, tolerance=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "convnext", "unet", "mamba", "mixtral"])
def test_conformance(name):
    model, batch = zoo.build(name), zoo.batch(name)
    sites = "**.weight" if name == "unet" else "blocks.**.weight"
    check_tuner(lambda: FLoRA(sites=sites, rank=2), model, batch)
    if name == "unet":
        return  # its many tensors are slow to check, and alike to these methods
    check_tuner(lambda: SubspaceTuning(d=9, sites=sites), model, batch, tolerance=5e-5)
    check_tuner(lambda: Hypernetwork(sites=sites, hidden=(4, 8)), model, batch, tolerance=5e-5)


def test_structure_aware_subspaces_conform():
    model, batch = zoo.build("llama"), zoo.batch("llama")
    check_tuner(lambda: SubspaceTuning(d=40, structure_aware=True), model, batch, tolerance=5e-5)
    with SubspaceTuning(d=40, structure_aware=True).attach(model) as tuned:
        assert tuned.n_trainable == 40
    with pytest.raises(ValueError, match="leaves nothing beside the factors"):
        SubspaceTuning(d=5, structure_aware=True).attach(model)


def test_tucker_counts_ranks_and_reconstructs():
    change = TuckerChange((6, 5, 3, 3), (2, 3, 2, 2), scale=0.5, generator=Generator().manual_seed(0)).double()
    assert sum(p.numel() for p in change.parameters()) == 2 * 3 * 2 * 2 + 6 * 2 + 5 * 3 + 3 * 2 + 3 * 2
    with torch.no_grad():
        change.core.normal_(generator=Generator().manual_seed(1))
    delta = change.delta().detach()
    a, b, c, d = change.factors
    expected = 0.5 * torch.einsum("abcd,ia,jb,kc,ld->ijkl", change.core, a, b, c, d)
    torch.testing.assert_close(delta, expected.detach())
    assert [int(torch.linalg.matrix_rank(unfold(delta, n))) for n in range(4)] == [2, 3, 2, 2]
    entry = change.entry(torch.zeros(6, 5, 3, 3))
    torch.testing.assert_close(entry.dense(), delta)
    found = Tucker.of(delta, (2, 3, 2, 2))
    torch.testing.assert_close(found.dense(), delta)
    worse = Tucker.of(delta, (1, 2, 2, 2))
    once = Tucker.of(delta, (1, 2, 2, 2), sweeps=0)
    assert (worse.dense() - delta).norm() <= (once.dense() - delta).norm() + 1e-12


def test_a_core_of_ones_on_its_diagonal_is_lora():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5))
    x = torch.randn(3, 7)
    with LoRA(sites="0.weight", rank=3, alpha=6.0).attach(model) as lora:
        low = lora.placements[0][1]
        nn.init.normal_(low.up)
        expected = model(x)
        up, down = low.up.detach().clone(), low.down.detach().clone()
    with FLoRA(sites="0.weight", rank=3, scale=2.0).attach(model) as tuned:
        change = tuned.placements[0][1]
        with torch.no_grad():
            change.core.copy_(torch.eye(3))
            change.factors[0].copy_(up)
            change.factors[1].copy_(down.t())
        torch.testing.assert_close(model(x), expected)


def test_tucker_changes_are_saved_and_added_as_factors(tmp_path):
    model = zoo.build("convnext")
    with FLoRA(sites="blocks.0.**.weight", rank=2).attach(model) as tuned:
        with torch.no_grad():
            for p in tuned.parameters():
                p.normal_(generator=Generator().manual_seed(0))
        delta = tuned.delta()
        delta.save(tmp_path / "d.safetensors")
        again = Delta.load(tmp_path / "d.safetensors")
        for name in delta:
            torch.testing.assert_close(again[name].dense(), delta[name].dense())
        assert any(entry.kind == "tucker" for entry in again.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10), st.integers(0, 99))
def test_the_fast_hadamard_transform_is_the_matrix(bits, seed):
    n = 1 << bits
    x = torch.randn(2, n, dtype=torch.float64, generator=Generator().manual_seed(seed))
    expected = x @ torch.from_numpy(scipy.linalg.hadamard(n)).double()
    torch.testing.assert_close(fwht(x), expected)
    torch.testing.assert_close(fwht(fwht(x)), n * x)


def test_fastfood_keeps_norms_is_adjoint_and_comes_back_from_its_seed():
    one, other = (Fastfood(100, 5000, seed=7) for _ in range(2))
    x = torch.randn(100, dtype=torch.float64, generator=Generator().manual_seed(0))
    y = torch.randn(5000, dtype=torch.float64, generator=Generator().manual_seed(1))
    assert torch.equal(one.matvec(x), other.matvec(x))
    assert not torch.allclose(one.matvec(x), Fastfood(100, 5000, seed=8).matvec(x))
    torch.testing.assert_close(one.matvec(x) @ y, x @ one.rmatvec(y))
    for seed in range(5):
        large = Fastfood(100, 4096 + 500 * seed, seed)
        assert float(large.matvec(x).norm() / x.norm()) == pytest.approx(1, abs=0.1)
    columns = Fastfood(64, 1 << 16, 3).matvec(torch.eye(64))
    cosines = torch.nn.functional.normalize(columns, dim=1) @ torch.nn.functional.normalize(columns, dim=1).t()
    assert float((cosines - torch.eye(64)).abs().max()) < 0.1
    small = x[:5].clone().requires_grad_()
    torch.autograd.gradcheck(Fastfood(5, 11, 0).matvec, small)
    with pytest.raises(ValueError, match="no power of two"):
        fwht(torch.zeros(6))
    with pytest.raises(ValueError, match="at most outputs=3"):
        Fastfood(4, 3, 0)


def test_a_subspace_is_saved_as_its_numbers_alone(tmp_path):
    model = zoo.build("llama")
    with SubspaceTuning(d=50, sites="blocks.**.weight").attach(model) as tuned:
        assert tuned.n_trainable == 50
        tuned.save(tmp_path / "s")
        assert (tmp_path / "s/tensors.safetensors").stat().st_size < 4 * 50 + 4096
        sizes = [float(c.delta().norm()) for _, c in tuned.placements]
        assert sizes == [0.0] * len(sizes)
        with torch.no_grad():
            tuned.placements[0][1].vector.normal_(generator=Generator().manual_seed(0))
        norm = float(tuned.placements[0][1].vector.norm())
        for _, change in tuned.placements:
            if math.prod(change.shape) > 1000:
                assert float(change.delta().norm()) == pytest.approx(norm, rel=0.15)


def test_the_intrinsic_dimension_is_where_all_larger_ones_pass():
    assert intrinsic_dimension({10: 0.5, 30: 0.91, 100: 0.89, 300: 0.92, 1000: 0.95}, 1.0) == 300
    assert intrinsic_dimension({10: 0.5, 30: 0.6}, 1.0) is None
    assert intrinsic_dimension({10: 0.95, 30: 0.96}, 1.0) == 10
    assert occam_bound(200, 3000, bits=8) == pytest.approx(math.sqrt((1600 * math.log(2) + math.log(20)) / 6000))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_the_encoding_has_one_norm(values):
    gamma = torch.tensor(values, dtype=torch.float64)
    assert float(encode(gamma).norm()) == pytest.approx(math.sqrt(len(values)), abs=1e-6)
    assert float(encode(gamma, "z|1-z").sum()) == pytest.approx(len(values), abs=1e-6)


def test_the_disease_and_its_cure():
    """Bare predictions are proportional to gamma; encoded and residual ones depend on it only as their draw has it.

    That is by 0.1 either way from one initialisation to the next, so the slope is taken over twenty.
    """
    gammas, slopes = torch.logspace(math.log10(0.05), 0, 12)[:, None], {}
    for encoding, residual in (("none", False), ("cos|sin", True)):
        found = []
        for seed in range(20):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
            recipe = Hypernetwork(sites="*.weight", encoding=encoding, residual=residual, zero=False)
            with recipe.attach(model, seed=seed) as tuned, torch.no_grad():
                norms = predicted(tuned, gammas)["0.weight"].flatten(1).norm(dim=1).log()
            x = gammas[:, 0].log() - gammas[:, 0].log().mean()
            found.append(float((x @ (norms - norms.mean())) / (x @ x)))
        slopes[encoding] = torch.tensor(found)
    assert (slopes["none"] - 1).abs().max() < 1e-4
    assert slopes["cos|sin"].mean().abs() < 0.1 and slopes["cos|sin"].abs().max() < 0.5


def test_settings_give_their_own_weights_one_by_one_or_all_at_once():
    model = zoo.build("llama")
    batch = zoo.batch("llama")
    with Hypernetwork(sites="blocks.*.mlp.*.weight", zero=False, hidden=(8, 8)).attach(model) as tuned:
        gammas = torch.tensor([[0.0], [0.4], [1.0]])
        weights = predicted(tuned, gammas)
        outputs = []
        for i, gamma in enumerate(gammas):
            with condition(tuned, gamma):
                outputs.append(model(**batch).logits)
                delta = tuned.delta()
                for name, value in weights.items():
                    base = dict(model.named_parameters())[name.replace(".weight", ".parametrizations.weight.original")]
                    torch.testing.assert_close(base + delta[name].dense(), value[i])
        assert not torch.allclose(outputs[0], outputs[2])
        model(**batch).logits.sum().backward()
        assert all(p.grad is not None for p in tuned.parameters())
        for bad in (1.5, [0.1, 0.2]):
            with pytest.raises(ValueError, match="gamma must be 1 numbers"), condition(tuned, bad):
                pass
    with (
        LoRA(rank=1).attach(model) as tuned,
        pytest.raises(ValueError, match="predicts no weights"),
        condition(tuned, 0),
    ):
        pass


def test_multiply_is_the_mode_product():
    tensor, matrix = torch.randn(3, 4, 5), torch.randn(2, 4)
    torch.testing.assert_close(multiply(tensor, {1: matrix}), torch.einsum("abc,db->adc", tensor, matrix))
