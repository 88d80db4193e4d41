"""Grafts of chosen weights: exact values, exact budgets, the relaxation's derivative, and a skill that is found."""

import pytest
import torch
from torch import nn

import monochord as mc
from monochord.core.delta import Delta, DeltaError
from monochord.edit.skill_grafting import BIAS, _gradient, graft, localize, movement_mask, overlap
from monochord.objectives import CrossEntropy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 2)
        for p in self.parameters():
            p.data = 0.4 * torch.randn(p.shape, generator=g)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def pair(scale=0.3):
    base, tuned = Net(), Net()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return base, tuned


def batches(n=3):
    g = torch.Generator().manual_seed(2)
    xs = torch.randn(n, 8, 6, generator=g)
    return [{"x": x, "labels": (x[:, 0] > 0).long()} for x in xs]


def state(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_grafted_weights_are_the_tuned_ones_bit_for_bit_and_the_rest_the_base(share, tmp_path):
    base, tuned = pair()
    mask = movement_mask(Delta.between(base, tuned), fraction=share)
    before, after = state(base), state(tuned)
    assert mask.count == round(share * sum(p.numel() for p in base.parameters()))
    graft(base, tuned, mask).save(tmp_path / "skill.safetensors")
    with Delta.load(tmp_path / "skill.safetensors").applied(base):
        for name, p in base.named_parameters():
            assert torch.equal(p, torch.where(mask[name], after[name], before[name]))
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


def test_a_small_graft_is_a_small_file():
    base, tuned = nn.Linear(400, 400), nn.Linear(400, 400)
    found = graft(base, tuned, movement_mask(Delta.between(base, tuned), k=50))
    assert found.nbytes == 50 * 16


def test_the_movement_mask_takes_the_largest_changes_of_all_tensors_together():
    base, tuned = pair()
    mask = movement_mask(Delta.between(base, tuned), k=40)
    moved = {n: (p - dict(base.named_parameters())[n]).detach().abs() for n, p in tuned.named_parameters()}
    kept = min(float(moved[n][mask[n]].min()) for n in moved if mask[n].any())
    left = max(float(moved[n][~mask[n]].max()) for n in moved)
    assert mask.count == 40 and kept >= left


def test_the_logits_move_along_the_derivative_of_the_relaxed_loss():
    """One epoch by hand: autograd through base + frac * change gives the flips that `localize` makes."""
    base, tuned = pair()
    delta, data, objective = Delta.between(base, tuned), batches(), CrossEntropy()
    start, lr = movement_mask(delta, k=20), 3e6
    g = torch.Generator().manual_seed(5)
    logits = {n: torch.rand(e.shape, generator=g).requires_grad_() for n, e in delta.items()}
    weights, hand = {}, {}
    for name, p in base.named_parameters():
        soft = torch.sigmoid(logits[name] - BIAS)
        frac = torch.where(start[name], 1 - soft, soft)
        weights[name] = p.detach() + frac * delta[name].dense()
        hand[name] = torch.where(start[name], -1.0, 1.0) * delta[name].dense() * soft * (1 - soft)
    loss = sum(
        nn.functional.cross_entropy(torch.func.functional_call(base, weights, (b["x"],)), b["labels"]) for b in data
    ) / len(data)
    slopes = torch.autograd.grad(loss, list(logits.values()))
    with torch.no_grad():
        for name, p in base.named_parameters():
            p.copy_(weights[name])
    at = _gradient(base, data, objective, dict(base.named_parameters()))
    for name, slope in zip(logits, slopes, strict=True):
        torch.testing.assert_close(slope, hand[name].detach() * at[name], atol=1e-10, rtol=1e-4)
    wanted = {n: logits[n].detach() - lr * s for n, s in zip(logits, slopes, strict=True)}
    flipped = {n: torch.where(start[n], wanted[n] < BIAS, wanted[n] > BIAS) for n in wanted}
    total = sum(int(m.sum()) for m in flipped.values())
    base = Net()
    found = localize(base, delta, data, objective, budget=146, start=start, epochs=1, lr=lr, seed=5)
    assert found.history[0][1:] == (20, 0)  # at first the rounded mask is the start
    assert found.history[1][1] == total and total != 20


def test_localizing_finds_the_weights_that_matter_and_keeps_its_budget():
    """Only the first input's column carries the task; the other columns moved more."""
    base, tuned = Net(), Net()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        tuned.first.weight[:, 1:].add_(0.8 * torch.randn(16, 5, generator=g))
        tuned.first.weight[:, 0].add_(0.5 * base.second.weight[1].sign())
        tuned.first.weight[:, 0].sub_(0.5 * base.second.weight[0].sign())
    delta, data = Delta.between(base, tuned), batches(6)
    before, budget = state(base), 14
    moved = movement_mask(delta, k=budget)
    found = localize(base, delta, data, CrossEntropy(), budget=budget, start=moved, epochs=12)
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())
    assert 0 < found.mask.count <= budget and found.score == max(value for value, *_ in found.history)
    assert (found.mask ^ moved).count > 0  # it went away from where it started
    column = found.mask["first.weight"][:, 0].sum() / found.mask.count
    assert column > 2 * float(moved["first.weight"][:, 0].sum()) / budget

    def loss(mask):
        with graft(base, tuned, mask).applied(base), torch.no_grad():
            return sum(float(CrossEntropy()(base, b).total) for b in data) / len(data)

    assert loss(found.mask) < loss(moved) - 0.05 and loss(found.mask) < loss(moved.random_like(0)) - 0.05


def test_overlap_is_a_share_of_the_first():
    one = mc.Selection({"w": torch.tensor([True, True, False, False])})
    two = mc.Selection({"w": torch.tensor([True, False, False, True])})
    three = mc.Selection({"w": torch.tensor([True, False, False, False])})
    assert overlap(one, two) == 0.5 and overlap(one, three) == 0.5 and overlap(three, one) == 1.0


def test_what_does_not_fit_is_refused():
    base, tuned = pair()
    delta = Delta.between(base, tuned)
    with pytest.raises(ValueError, match="budget=0 of 146 changed weights: use 1 to 146"):
        localize(base, delta, batches(), CrossEntropy(), budget=0)
    with pytest.raises(DeltaError, match=r"'third', \(2,\), and the base has no such weight"):
        graft(base, tuned, mc.Selection({"third": torch.ones(2, dtype=torch.bool)}))
