"""Two groups in turn: who moves when, on which data, by hand; checkpoints; what is refused."""

import copy

import pytest
import torch
from torch import nn

from monochord.core.bilevel import Bilevel
from monochord.core.fit import fit
from monochord.core.objective import Loss, Objective, Step
from monochord.core.update import Gradient
from monochord.core.zeroth_order import ZerothOrder


class Squares(Objective):
    def loss(self, model, batch, step):
        return Loss((model(batch["x"]) - batch["y"]).square().mean())


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batches(seed, count=3):
    g = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(8, 3, generator=g), "y": torch.randn(8, 2, generator=g)} for _ in range(count)]


def made(held, chosen=lambda name: name.startswith("2."), **options):
    return Bilevel(Gradient("sgd", 0.1), Gradient("sgd", 0.3), above_parameters=chosen, held=held, **options)


def test_the_groups_alternate_each_on_its_own_data_as_by_hand():
    model, hand, train, held = net(), net(), batches(1), batches(2, 2)
    update = made(held)
    fit(model, train, Squares(), steps=5, update=update, progress=False)
    for step in range(5):
        for part, data, rate in ((hand[2], held[step % 2], 0.3), (hand[0], train[step % 3], 0.1)):
            loss = Squares()(hand, data).total
            for p, g in zip(part.parameters(), torch.autograd.grad(loss, list(part.parameters())), strict=True):
                p.data -= rate * g
    torch.testing.assert_close(model.state_dict(), hand.state_dict())
    assert len(update.losses) == 5 and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_those_above_begin_late_and_move_every_so_often():
    seen, model = [], net()
    update = made(batches(2), begin=2, every=3)
    update.setup(model)
    for step in range(9):
        before = copy.deepcopy(model.state_dict())
        update.step(model, batches(1)[0], Squares(), Step(step))
        seen.append(not torch.equal(before["2.weight"], model[2].weight))
        assert not torch.equal(before["0.weight"], model[0].weight)
    assert seen == [False, False, True, False, False, True, False, False, True]


def test_parameters_may_be_given_themselves_and_the_rest_stays_frozen():
    one, other = net(), net()
    for model, chosen in ((one, lambda name: name == "2.bias"), (other, [other[2].bias])):
        model[0].bias.requires_grad_(False)
        fit(model, batches(1), Squares(), steps=3, update=made(batches(2), chosen), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(one[0].bias, net()[0].bias) and not one[0].bias.requires_grad


def test_a_checkpoint_goes_on_to_the_same_numbers(tmp_path):
    whole, half = net(), net()
    options = {"progress": False, "schedule": "linear"}
    fit(whole, batches(1), Squares(), steps=8, update=made(batches(2, 5)), **options)

    class Stop:
        def __getattr__(self, name):
            return lambda run: setattr(run, "stop", run.stop or run.step == 3)

    fit(half, batches(1), Squares(), steps=8, update=made(batches(2, 5)), checkpoint=tmp_path, save_every=1,
        callbacks=[Stop()], **options)  # fmt: skip
    again, update = net(), made(batches(2, 5))
    fit(again, batches(1), Squares(), steps=8, update=update, checkpoint=tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert len(update.losses) == 8 and not torch.equal(half[0].weight, whole[0].weight)


def test_any_update_may_be_above():
    model = net()
    update = Bilevel(Gradient("sgd", 0.1), ZerothOrder(0.01), above_parameters=lambda n: n == "2.bias", held=batches(2))
    fit(model, batches(1), Squares(), steps=3, update=update, progress=False)
    assert not torch.equal(model[2].bias, net()[2].bias) and len(update.above.log) == 3


def test_an_exception_leaves_all_trainable():
    class Fails(Squares):
        def loss(self, model, batch, step):
            raise KeyboardInterrupt

    model, update = net(), made(batches(2))
    update.setup(model)
    with pytest.raises(KeyboardInterrupt):
        update.step(model, batches(1)[0], Fails())
    assert all(p.requires_grad for p in model.parameters())


def test_an_empty_group_and_bad_options_are_refused():
    for chosen, which in ((lambda name: False, "above"), (lambda name: True, "below")):
        with pytest.raises(ValueError, match=f"nothing to train {which}"):
            made(batches(2), chosen).setup(net())
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        made(batches(2), every=0)
