"""The exact invariants of a zeroth-order step: restoring, replay, noise, slope and gradient."""

import copy

import pytest
import torch
from torch import nn

from monochord.core.finite import NotFinite
from monochord.core.noise import PIECE, Noise
from monochord.core.objective import Loss, Objective, Step
from monochord.core.schedules import Ramp
from monochord.core.state import pack, unpack
from monochord.core.zeroth_order import ZerothOrder


class Mean(Objective):
    def loss(self, model, batch, step):
        return Loss(model(batch["x"]).square().mean())


class Watch(Objective):
    """Keeps the weights of every forward."""

    def __init__(self):
        self.seen = []

    def loss(self, model, batch, step):
        self.seen.append([p.detach().clone() for p in model.parameters()])
        return Mean().loss(model, batch, step)


BATCH = {"x": torch.randn(16, 6, generator=torch.Generator().manual_seed(0))}


def net(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 200), nn.Dropout(dropout), nn.Tanh(), nn.Linear(200, 300)).to(dtype)


def made(model, **options):
    update = ZerothOrder(**{"lr": 0.0, **options})
    update.setup(model)
    return update


@pytest.mark.parametrize("noise", ["gaussian", "sign"])
@pytest.mark.parametrize("samples", [1, 3])
def test_weights_come_back_and_exactly_so_on_request(noise, samples):
    for exact, tolerance in ((False, 1e-6), (True, 0.0)):
        model = net()
        made(model, noise=noise, samples=samples, exact_restore=exact).step(model, BATCH, Mean())
        torch.testing.assert_close(model.state_dict(), net().state_dict(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("noise", ["gaussian", "sign"])
def test_the_two_forwards_are_at_plus_and_minus_eps_along_one_direction(noise):
    model, watch = net(), Watch()
    update = made(model, noise=noise, eps=0.01)
    loss = update.step(model, BATCH, watch)
    z = dict(zip(["0.weight", "3.weight", "0.bias", "3.bias"], update.direction(update.log[0][0]), strict=True))
    totals = []
    for sign, seen in zip((1, -1), watch.seen, strict=True):
        moved = net()
        for name, parameter in moved.named_parameters():
            parameter.data += sign * 0.01 * z[name]
        for value, parameter in zip(seen, moved.parameters(), strict=True):
            torch.testing.assert_close(value, parameter.data, atol=1e-6, rtol=0)
        totals.append(Mean()(moved, BATCH).total.item())
    assert update.log[0][1] == pytest.approx((totals[0] - totals[1]) / 0.02, abs=1e-3)
    assert loss.total.item() == pytest.approx(sum(totals) / 2)


def test_the_slope_is_the_central_difference_in_float64():
    model = net(torch.float64)
    update = made(model, eps=1e-5)
    update.step(model, BATCH | {"x": BATCH["x"].double()}, Mean())
    z = update.direction(update.log[0][0])
    order = [model[0].weight, model[3].weight, model[0].bias, model[3].bias]
    gradient = torch.autograd.grad(Mean()(model, {"x": BATCH["x"].double()}).total, order)
    along = sum((g * d).sum() for g, d in zip(gradient, z, strict=True)).item()
    assert update.log[0][1] == pytest.approx(along, rel=1e-6)


def test_the_mean_of_g_z_is_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    batch = {"x": torch.randn(20, 4, dtype=torch.float64)}
    assert sum(p.numel() for p in model.parameters()) == 55
    update = made(model, samples=1000, exact_restore=True)
    order = [model[0].weight, model[2].weight, model[0].bias, model[2].bias]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(Mean()(model, batch).total, order)])
    mean = torch.zeros_like(gradient)
    update.step(model, batch, Mean())
    for seed, g in update.log:
        mean += g * torch.cat([z.flatten() for z in update.direction(seed)]) / 1000
    assert torch.cosine_similarity(mean, gradient, dim=0) > 0.95


@pytest.mark.parametrize("samples", [1, 2])
def test_replay_rebuilds_the_weights_without_data(samples):
    for exact in (True, False):
        model, again = net(), net()
        update = made(model, lr=1e-3, weight_decay=0.1, samples=samples, exact_restore=exact)
        for step in range(20):
            update.scale_lr(1 / (1 + step))
            update.step(model, BATCH, Mean())
        stored = ZerothOrder(lr=1e-3, weight_decay=0.1, samples=samples)
        stored.load_state_dict(update.state_dict())
        stored.replay(again)
        assert len(update.log) == 20 * samples
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other) if exact else (one - other).abs().max() < 1e-5


def test_decay_leaves_out_vectors_and_is_of_the_restored_weights():
    for exact in (True, False):
        model = net()
        update = made(model, lr=0.1, weight_decay=0.5, exact_restore=exact)
        update.step(model, BATCH, Mean())
        (seed, g), names = update.log[0], ["0.weight", "3.weight", "0.bias", "3.bias"]
        for name, z in zip(names, update.direction(seed), strict=True):
            decay = 0.5 if "weight" in name else 0.0
            start = net().get_parameter(name).data
            expected = start - 0.1 * (g * z + decay * start)
            torch.testing.assert_close(model.get_parameter(name).data, expected, atol=1e-5, rtol=1e-5)


def test_dropout_is_off_and_the_global_generator_untouched():
    model = net(dropout=0.9).train()
    update = made(model)
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    update.step(model, BATCH, Mean())
    assert torch.equal(torch.rand(2), expected) and model.training and model[1].training
    plain = net()
    other = made(plain)
    other.step(plain, BATCH, Mean())
    assert other.log == update.log


def test_any_scalar_will_do_and_it_learns():
    class Accuracy(Objective):
        differentiable = False

        def loss(self, model, batch, step):
            return Loss((model(batch["x"]) < 0).float().mean())

    model = nn.Linear(6, 5)
    update = made(model, lr=0.05, eps=0.1, samples=4)
    before = Accuracy()(model, BATCH).total
    for _ in range(60):
        update.step(model, BATCH, Accuracy())
    assert Accuracy()(model, BATCH).total < before - 0.3


def test_frozen_parameters_stay_bit_identical():
    model = net()
    model[0].requires_grad_(False)
    update = made(model, lr=0.1, weight_decay=0.5)
    update.step(model, BATCH, Mean())
    assert torch.equal(model[0].weight, net()[0].weight) and not torch.equal(model[3].weight, net()[3].weight)


def test_a_slope_that_is_no_number_stops_with_the_weights_restored():
    class Infinite(Objective):
        def loss(self, model, batch, step):
            return Loss(model(batch["x"]).mean() * float("inf"))

    model = net()
    with pytest.raises(NotFinite, match="step 0: the slope of the loss is nan"):
        made(model, lr=0.1).step(model, BATCH, Infinite())
    torch.testing.assert_close(model.state_dict(), net().state_dict(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("call", [1, 2])
def test_an_exception_in_the_objective_leaves_the_weights_restored(exact, call):
    class Fails(Mean):
        calls = 0

        def loss(self, model, batch, step):
            self.calls += 1
            if self.calls == call:
                raise KeyboardInterrupt
            return super().loss(model, batch, step)

    model = net()
    with pytest.raises(KeyboardInterrupt):
        made(model, lr=0.1, exact_restore=exact).step(model, BATCH, Fails())
    torch.testing.assert_close(model.state_dict(), net().state_dict(), atol=0 if exact else 1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
def test_noise_is_regenerated_whatever_the_threads_and_has_the_right_moments(kind):
    tensors = [torch.zeros(700, 501), torch.zeros(3), torch.zeros(40, 7).T, torch.zeros(PIECE)]

    def drawn(seed, threads):
        found, before = copy.deepcopy(tensors), torch.get_num_threads()
        torch.set_num_threads(threads)
        Noise(found[:2], found[2:], kind=kind).visit(seed, lambda pieces, z, group: torch._foreach_add_(pieces, z))
        torch.set_num_threads(before)
        return found

    one, other, third = drawn(5, 1), drawn(5, 2), drawn(6, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    z, different = (torch.cat([t.flatten() for t in found]).double() for found in (one, third))
    assert abs(z.mean()) < 0.006 and abs(z.var() - 1) < 0.01
    assert abs((z * different).mean()) < 0.006
    assert abs(torch.corrcoef(torch.stack([z[1:], z[:-1]]))[0, 1]) < 0.006
    kurtosis = z.pow(4).mean()
    assert abs(kurtosis - (3 if kind == "gaussian" else 1)) < 0.06
    if kind == "gaussian":
        for bound, share in ((1, 0.1587), (2, 0.02275), (3, 0.00135)):
            assert (z > bound).double().mean().item() == pytest.approx(share, rel=0.15)


def test_bfloat16_parameters_move():
    model = net(torch.bfloat16)
    update = made(model, lr=0.5)
    update.step(model, {"x": BATCH["x"].bfloat16()}, Mean())
    assert not torch.equal(model[3].weight, net(torch.bfloat16)[3].weight)
    assert model[3].weight.dtype == torch.bfloat16


def test_bad_options_are_one_clear_line():
    with pytest.raises(ValueError, match="eps must be positive and samples at least 1"):
        ZerothOrder(lr=1, eps=0)
    with pytest.raises(ValueError, match="'gaussian' or 'sign', got 'uniform'"):
        made(net(), noise="uniform")
    with pytest.raises(ValueError, match="nothing to train"):
        made(net().requires_grad_(False))


def test_a_plain_step_is_the_arithmetic_of_its_formula_to_the_bit():
    model, hand = net(), net()
    update = made(model, lr=0.05, eps=0.01, weight_decay=0.1)
    update.step(model, BATCH, Mean())
    (seed, g), order = update.log[0], [hand[0].weight, hand[3].weight, hand[0].bias, hand[3].bias]
    for tensor, z in zip((p.data for p in order), update.direction(seed), strict=True):
        kept = 1 - 0.05 * 0.1 if tensor.ndim > 1 else 1.0
        tensor.add_(z, alpha=0.01).add_(z, alpha=-0.02)
        if kept != 1:
            tensor.mul_(kept)
        tensor.add_(z, alpha=kept * 0.01 - 0.05 * g)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), hand.parameters(), strict=True))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_momentum_and_adam_are_what_they_are_by_hand(kind, samples):
    options = {"momentum": 0.9} if kind == "momentum" else {"optimizer": "adam", "betas": (0.8, 0.9)}
    model, batch = net(torch.float64), {"x": BATCH["x"].double()}
    update = made(model, lr=0.01, eps=1e-4, samples=samples, weight_decay=0.0, **options)
    weights = [net(torch.float64).get_parameter(n).data for n in ("0.weight", "3.weight", "0.bias", "3.bias")]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(1, 5):
        update.scale_lr(1 / step)
        update.step(model, batch, Mean())
        drawn = [(g, update.direction(seed)) for seed, g in update.log[-samples:]]
        for i, weight in enumerate(weights):
            mean = sum(g * z[i].double() for g, z in drawn) / samples
            if kind == "momentum":
                first[i] = 0.9 * first[i] + mean
                weight -= 0.01 / step * first[i]
            else:
                first[i] = 0.8 * first[i] + 0.2 * mean
                second[i] = 0.9 * second[i] + 0.1 * mean**2
                root = (second[i] / (1 - 0.9**step)).sqrt() + 1e-8
                weight -= 0.01 / step * first[i] / (1 - 0.8**step) / root
    own = [model.get_parameter(n).data for n in ("0.weight", "3.weight", "0.bias", "3.bias")]
    torch.testing.assert_close(own, weights, atol=1e-9, rtol=1e-9)
    assert all(p.grad is None for p in model.parameters())


VARIANTS = {
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "adam": {"optimizer": "adam"},
    "more and more samples": {"samples": Ramp(1, 4, 8)},
    "scaled": {"scaled": True, "weight_decay": 0.1},
    "all": {"scaled": True, "optimizer": "adamw", "samples": Ramp(1, 4, 8), "noise": "sign", "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_replays_to_the_bit_and_goes_on_from_its_state(name):
    options = {"lr": 1e-3, "exact_restore": True, **VARIANTS[name]}
    model, again, halved = net(), net(), net()
    update = made(model, **options)
    state = None
    for step in range(12):
        update.scale_lr(1 / (1 + step))
        update.step(model, BATCH, Mean())
        if step == 5:
            halved.load_state_dict(model.state_dict())
            state = unpack(*pack(copy.deepcopy(update.state_dict())))
    stored = ZerothOrder(**options)
    stored.load_state_dict(update.state_dict())
    stored.replay(again)
    early, late = ZerothOrder(**options), ZerothOrder(**options)
    early.load_state_dict(state)
    early.setup(halved)
    for step in range(6, 9):  # the state is taken before the parameters, and after them
        early.scale_lr(1 / (1 + step))
        early.step(halved, BATCH, Mean(), Step(step))
    late.setup(halved)
    late.load_state_dict(early.state_dict())
    for step in range(9, 12):
        late.scale_lr(1 / (1 + step))
        late.step(halved, BATCH, Mean(), Step(step))
    assert late.log == update.log and late.counts == update.counts
    for other in (again, halved):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not torch.equal(model[0].weight, net()[0].weight)


def test_an_optimizer_goes_on_after_a_replay_as_if_it_had_trained_there():
    model, again = net(), net()
    update = made(model, lr=1e-2, exact_restore=True, momentum=0.9)
    for _ in range(5):
        update.step(model, BATCH, Mean())
    other = ZerothOrder(lr=1e-2, exact_restore=True, momentum=0.9)
    other.setup(again)
    other.load_state_dict(update.state_dict())
    other.replay(again)
    for one, weights in ((update, model), (other, again)):
        one.step(weights, BATCH, Mean())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_schedule_of_samples_takes_as_many_directions_and_none_twice():
    update = made(model := net(), samples=Ramp(1, 5, 4), seed=3)
    for step in range(6):
        update.step(model, BATCH, Mean(), Step(step))
    assert update.counts == [1, 2, 3, 4, 5, 5]
    assert len({seed for seed, _ in update.log}) == len(update.log) == 20


def test_scaled_noise_probes_by_each_tensors_size_and_its_mean_step_is_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5, bias=False)).double()
    model[2].weight.data *= 30
    model[0].bias.data.zero_()
    start, watch = copy.deepcopy(model), Watch()
    batch = {"x": torch.randn(20, 4, dtype=torch.float64)}
    update = made(model, scaled=True, eps=1e-4)
    update.step(model, batch, watch)
    assert update.scales[1] > 30 * update.scales[0] and update.scales[2] == 1
    z = update.direction(update.log[0][0])
    probed = watch.seen[0][0] - start[0].weight  # seen in the order of the model: weight, bias, weight
    torch.testing.assert_close(probed, 1e-4 * update.scales[0] * z[0].double())
    torch.testing.assert_close(watch.seen[0][2] - start[2].weight, 1e-4 * update.scales[1] * z[1].double())

    moved = copy.deepcopy(start)
    made(moved, lr=1.0, scaled=True, eps=1e-4, samples=1000, exact_restore=True).step(moved, batch, Mean())
    order = [start[0].weight, start[2].weight, start[0].bias]
    gradient = torch.autograd.grad(Mean()(start, batch).total, order)
    for before, after, g in zip(order, (moved[0].weight, moved[2].weight, moved[0].bias), gradient, strict=True):
        assert torch.cosine_similarity((before - after).flatten(), g.flatten(), dim=0) > 0.8


def test_adam_of_slopes_learns_accuracy_itself():
    class Accuracy(Objective):
        differentiable = False

        def loss(self, model, batch, step):
            return Loss((model(batch["x"]) < 0).float().mean())

    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    update = made(model, lr=0.05, eps=0.1, samples=4, optimizer="adam")
    before = Accuracy()(model, BATCH).total
    for _ in range(40):
        update.step(model, BATCH, Accuracy())
    assert Accuracy()(model, BATCH).total < before - 0.3
