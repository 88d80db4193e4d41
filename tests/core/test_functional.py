"""A model as a function of its weights: exact identities of derivatives, expansions and kernels."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import Tensor, nn

from monochord.adapt import LoRA
from monochord.core.delta import Delta
from monochord.core.forward import logits_of, run
from monochord.core.functional import call, jvp, linearize, ntk, vjp

NAMES = ("sequential", "gpt2", "bert", "vit", "unet", "multihead")  # float64 from end to end
NORMS_IN_FLOAT32 = ("llama", "t5", "mamba")


def double(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    given = {n: v.double() if v.is_floating_point() else v for n, v in zoo.batch(name).items()}
    return zoo.build(name).double(), given


def noise(like: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in like.items()}


def tiny() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(4, 3).double()


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Row by row by plain autograd, (examples * units, parameters)."""
    rows = [torch.autograd.grad(u, list(model.parameters()), retain_graph=True) for u in model(x).flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("name", [*NAMES, *NORMS_IN_FLOAT32])
def test_jvp_is_the_slope_of_a_finite_difference(name: str) -> None:
    model, batch = double(name)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    exact, step = name in NAMES, 1e-6 if name == "sequential" else 1e-4
    tangents = {n: 0.1 * v for n, v in noise(weights).items()}
    sides = [{n: w + s * step * tangents[n] for n, w in weights.items()} for s in (1, -1)]
    with torch.no_grad():
        up, down = (logits_of(call(model, side, batch)) for side in sides)
    slope = (up - down) / (2 * step)
    found = jvp(model, batch, tangents)
    assert (found - slope).abs().max() <= (1e-4 if exact else 5e-3) * slope.abs().max()


@pytest.mark.parametrize("name", [*NAMES, *NORMS_IN_FLOAT32])
def test_vjp_is_the_transpose_of_jvp(name: str) -> None:
    model, batch = double(name)
    tangents = noise(dict(model.named_parameters()))
    forward = jvp(model, batch, tangents)
    cotangent = noise({"c": forward}, 1)["c"]
    backward = vjp(model, batch, cotangent)
    found = sum((backward[n] * tangents[n]).sum() for n in backward)
    tolerance = 1e-10 if name in NAMES else 1e-4
    assert abs(found - (cotangent * forward).sum()) <= tolerance * (cotangent * forward).abs().sum()
    assert all(p.grad is None for p in model.parameters())


def test_fused_experts_have_a_directional_derivative() -> None:
    model, batch = zoo.build("mixtral"), zoo.batch("mixtral")
    tangents = noise(dict(model.named_parameters()))
    forward = jvp(model, batch, tangents)
    cotangent = noise({"c": forward}, 1)["c"]
    found = sum((g * tangents[n]).sum() for n, g in vjp(model, batch, cotangent).items())
    assert abs(found - (cotangent * forward).sum()) <= 1e-4 * (cotangent * forward).abs().sum()
    assert model.config._experts_implementation == "grouped_mm"  # as it was


def test_call_replaces_what_is_given_and_nothing_else() -> None:
    model, batch = zoo.build("llama"), zoo.batch("llama")
    before = copy.deepcopy(model.state_dict())
    other = {"lm_head.weight": 2 * model.lm_head.weight.detach()}
    assert torch.allclose(call(model, other, batch).logits, 2 * model(**batch).logits)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_derivatives_ignore_dropout_and_keep_the_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    x, tangents = torch.ones(2, 3), noise(dict(model.named_parameters()))
    assert torch.equal(jvp(model, x, tangents), jvp(model, x, tangents))
    assert model.training and model[1].training


def test_tangents_left_out_stand_still() -> None:
    model, x = tiny()
    one = {"2.bias": torch.tensor([1.0, -3.0]).double()}
    assert torch.equal(jvp(model, x, one), one["2.bias"].expand(4, 2))


def test_derivative_at_other_weights() -> None:
    model, x = tiny()
    at = {n: p.detach() + 1 for n, p in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict(at)
    tangents = noise(at)
    assert torch.equal(jvp(model, x, tangents, at=at), jvp(other, x, tangents))
    assert torch.equal(ntk(model, x, at=at), ntk(other, x))


@pytest.mark.parametrize(
    ("tangents", "words"),
    [({"0.weigth": torch.zeros(5, 3)}, "nearest is '0.weight'"), ({"0.weight": torch.zeros(3, 5)}, r"\(5, 3\)")],
)
def test_a_wrong_tangent_is_named(tangents: dict[str, Tensor], words: str) -> None:
    model, x = tiny()
    with pytest.raises(ValueError, match=words):
        jvp(model, x, tangents)
    with pytest.raises(ValueError, match="cotangent is"):
        vjp(model, x, torch.zeros(4, 3).double())


# ---------------------------------------------------------------- linearised


@pytest.mark.parametrize("name", ["sequential", "llama", "gpt2", "t5", "unet"])
def test_linearised_model_is_the_model_at_zero_and_affine_in_its_delta(name: str) -> None:
    model, batch = double(name)
    linear = linearize(model)
    own = dict(linear.delta.named_parameters())
    assert own.keys() == dict(model.named_parameters()).keys()

    def at(*deltas: tuple[float, dict[str, Tensor]]) -> Tensor:
        linear.set_delta({n: sum(a * d[n] for a, d in deltas) for n in own} if deltas else {})
        return zoo.run(linear, batch)

    start = at()
    close = {"atol": 1e-12, "rtol": 1e-12} if name in NAMES else {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(start, zoo.run(model, batch), **close)
    one, two = noise(own, 1), noise(own, 2)
    wanted = 0.3 * (at((1.0, one)) - start) - 2.0 * (at((1.0, two)) - start)
    found = at((0.3, one), (-2.0, two)) - start
    assert (found - wanted).abs().max() <= (1e-9 if name in NAMES else 1e-4) * wanted.abs().max()
    torch.testing.assert_close(at((1.0, one)) - start, jvp(model, batch, one), rtol=1e-5, atol=1e-5)


def test_linearised_training_moves_only_the_delta_along_the_jacobian() -> None:
    model, batch = zoo.build("llama"), zoo.batch("llama")
    before = copy.deepcopy(model.state_dict())
    linear = linearize(model).train()
    assert not linear.base.training
    trained = [n for n, p in linear.named_parameters() if p.requires_grad]
    assert trained and all(n.startswith("delta.") for n in trained)
    logits = linear(**batch, labels=batch["input_ids"]).logits
    logits.backward(torch.ones_like(logits))
    wanted = vjp(model, batch, torch.ones_like(logits))
    for name, parameter in linear.delta.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4)
    torch.optim.AdamW([p for p in linear.parameters() if p.requires_grad], lr=0.01).step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(v, before[n]) for n, v in linear.base.state_dict().items())


def test_delta_goes_out_and_in_bit_for_bit_and_fits_the_model() -> None:
    model, x = tiny()
    linear, base = linearize(model), copy.deepcopy(model)
    linear.set_delta(noise(dict(model.named_parameters())))
    delta = linear.as_delta()
    other = linearize(model)
    other.set_delta(delta)
    assert torch.equal(other(x), linear(x))
    delta.apply(model)  # strict: the fingerprint of the base is in the delta
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(base.named_parameters())[name] + dict(linear.delta.named_parameters())[name])
    assert torch.equal(linear(x), other(x))  # the expansion stays where it was
    with pytest.raises(ValueError, match="the nearest is"):
        other.set_delta(Delta({"0.weigth": torch.zeros(5, 3)}))


def test_linearised_model_takes_batches_as_models_do() -> None:
    model, x = tiny()
    linear = linearize(model)
    assert torch.equal(run(linear, {"pixel_values": x, "labels": torch.zeros(4)}), model(x))
    labels = torch.arange(12).reshape(2, 6)
    t5 = linearize(zoo.build("t5"))
    assert t5(**zoo.text_batch(), labels=labels).logits.shape == (2, 6, 64)  # the decoder's inputs come from the labels


def test_linearised_around_another_model() -> None:
    model, x = tiny()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2)
    assert torch.equal(linearize(model, at=other)(x), other(x))
    assert torch.equal(linearize(model, at={"0.weight": other[0].weight})(x), other(x))


def test_only_what_trains_is_linearised() -> None:
    model, x = tiny()
    model[0].requires_grad_(False)
    assert list(dict(linearize(model).delta.named_parameters())) == ["2.weight", "2.bias"]
    assert list(vjp(model, x, torch.ones(4, 2).double())) == ["2.weight", "2.bias"]


def test_tangent_space_of_a_tuner() -> None:
    model, batch = zoo.build("llama"), zoo.batch("llama")
    with LoRA(rank=2).attach(model):
        linear = linearize(model)
        torch.testing.assert_close(zoo.run(linear, batch), zoo.run(model, batch))
        assert all("monochord" in n for n, _ in linear.delta.named_parameters())
        with pytest.raises(ValueError, match="belongs to a tuner"):
            linear.as_delta()


# ---------------------------------------------------------------- kernel


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_kernel_is_the_product_of_jacobians(chunk: int | None) -> None:
    model, x = tiny()
    y = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()
    own, other = jacobian(model, x), jacobian(model, y)
    torch.testing.assert_close(ntk(model, x, chunk=chunk), own @ own.T)
    torch.testing.assert_close(ntk(model, x, y, chunk=chunk), own @ other.T)
    traced = (own @ other.T).reshape(4, 2, 3, 2).diagonal(dim1=1, dim2=3).mean(-1)
    torch.testing.assert_close(ntk(model, x, y, trace=True, chunk=chunk), traced)


def test_kernel_is_symmetric_and_positive_semi_definite() -> None:
    model, batch = zoo.build("llama").double(), zoo.batch("llama")
    last = lambda output: output.logits[:, -1, :5]
    kernel = ntk(model, batch, outputs=last)
    assert kernel.shape == (10, 10)
    torch.testing.assert_close(kernel, kernel.T, rtol=0, atol=1e-9)
    assert torch.linalg.eigvalsh(kernel).min() >= -1e-9 * kernel.trace()
    assert kernel.diagonal().min() > 0


def test_kernel_products_agree_with_jvp_of_vjp() -> None:
    model, x = tiny()
    c = noise({"c": model(x)})["c"]
    wanted = jvp(model, x, vjp(model, x, c)).flatten()
    torch.testing.assert_close(ntk(model, x) @ c.flatten(), wanted)


def test_kernel_without_examples_says_so() -> None:
    model, x = tiny()
    with pytest.raises(ValueError, match="no tensor with examples"):
        ntk(model, {})
    with pytest.raises(ValueError, match="chunk=0"):
        ntk(model, x, chunk=0)
