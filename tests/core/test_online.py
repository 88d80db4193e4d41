"""The online loop adapts without labels, resets bit for bit, and a Hebbian rule is what its patches say."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.soft_hebbian import ChannelModulator, SoftHebbian, hebbian_change
from monochord.core.online import Minimise, adapt_online
from monochord.objectives.entropy import Entropy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.act = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, pixels):
        return self.head(self.act(self.norm(self.first(pixels))).mean((2, 3)))


def stream(n=3):
    g = torch.Generator().manual_seed(1)
    return [{"pixels": torch.randn(8, 1, 8, 8, generator=g), "labels": torch.zeros(8)} for _ in range(n)]


def test_without_rules_and_with_running_statistics_it_is_the_model():
    model = Net().eval()
    found = adapt_online(model, stream(), statistics="running")
    assert all(torch.equal(a, model(b["pixels"])) for a, b in zip(found, stream(), strict=True))
    batch = adapt_online(model, stream())
    model.train()
    assert all(torch.allclose(a, copy.deepcopy(model)(b["pixels"])) for a, b in zip(batch, stream(), strict=True))


def test_rules_see_no_labels_and_everything_is_restored():
    model, seen = Net().eval(), []
    start = {n: v.clone() for n, v in model.state_dict().items()}
    tuned = (ChannelModulator("act:out", 4) | FullTuning("norm")).attach(model)
    rules = [SoftHebbian("first", 0.05), Minimise(Entropy(), lr=0.05), lambda m, b: seen.append(set(b))]
    moved = adapt_online(model, stream(), rules, restore=False)
    state = tuned.model.state_dict()
    frozen = [n for n in start if n.startswith("head") or n in ("first.bias", "norm.running_mean", "norm.running_var")]
    assert all(torch.equal(state[n], start[n]) for n in frozen)
    assert not torch.equal(model.first.weight, start["first.weight"])
    norms = [w.flatten(1).norm(dim=1) for w in (model.first.weight, start["first.weight"])]
    torch.testing.assert_close(*norms)
    assert seen == [{"pixels"}] * 3 and not any(f.requires_grad for f in moved)
    tuned.detach()
    model.load_state_dict(start)
    adapt_online(model, stream(), [SoftHebbian("first", 0.05)])
    assert all(torch.equal(v, start[n]) for n, v in model.state_dict().items())


def test_rates_of_zero_are_the_batch_statistics_alone_and_episodes_forget():
    model = Net().eval()
    plain = adapt_online(model, stream())
    with ChannelModulator("act:out", 4).attach(model):
        still = adapt_online(model, stream(), [SoftHebbian("first", 0.0), Minimise(Entropy(), lr=0.0)])
    assert all(torch.equal(a, b) for a, b in zip(plain, still, strict=True))
    same = [stream(1)[0]] * 2
    first, second = adapt_online(model, same, [SoftHebbian("first", 0.1)], episodic=True)
    assert torch.equal(first, second)
    first, second = adapt_online(model, same, [SoftHebbian("first", 0.1)])
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="'after' or 'before'"):
        adapt_online(model, same, predict="never")


@pytest.mark.parametrize("stride,padding", [(1, 0), (2, 1)])
def test_the_change_is_a_loop_over_patches(stride, padding):
    g = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(2, 5, 3, stride, padding)
    x, w = torch.randn(3, 2, 7, 7, generator=g), F.normalize(torch.randn(5, 18, generator=g), dim=1)
    patches = F.unfold(x, 3, stride=stride, padding=padding).transpose(1, 2).reshape(-1, 18)
    wanted = torch.zeros(5, 18)
    for patch in patches:
        u = w @ patch
        y = (u / 0.7).softmax(0)
        wanted += y[:, None] * (patch[None] - u[:, None] * w)
    found = hebbian_change(x, w.reshape(5, 2, 3, 3), 0.7, layer).flatten(1)
    torch.testing.assert_close(found, wanted / len(patches), atol=1e-5, rtol=1e-4)


def test_a_filter_converges_to_the_one_patch_there_is():
    g = torch.Generator().manual_seed(0)
    patch = F.normalize(torch.randn(9, generator=g), dim=0)
    layer = nn.Conv2d(1, 1, 3)
    w = F.normalize(torch.randn(9, generator=g), dim=0)
    for _ in range(300):
        w = w + 0.1 * hebbian_change(patch.reshape(1, 1, 3, 3), w.reshape(1, 1, 3, 3), 1.0, layer).flatten()
    assert abs(float(w.norm()) - 1) < 0.01 and float(w @ patch) > 0.99
    with pytest.raises(ValueError, match="needs a plain, ungrouped Conv2d"):
        SoftHebbian("head")(Net(), stream(1)[0])
