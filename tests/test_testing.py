"""The conformance kit catches what it is there for: one deliberately broken thing for each invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from monochord.core.attach import Placement
from monochord.core.changes import LowRank
from monochord.core.layers import Layer
from monochord.core.modification import Add, Modification
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.prompt import Prompt
from monochord.core.sites import Site, resolve
from monochord.core.tuner import Tuned, Tuner
from monochord.core.update import Gradient, Update
from monochord.testing import (
    ConformanceError,
    check_detach_restores,
    check_modification,
    check_objective,
    check_tuner,
    check_update,
)


class Net(nn.Module):
    """Two layers and a norm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


BATCH = {"x": torch.linspace(-1, 1, 20).reshape(5, 4).sin()}


@dataclass(frozen=True)
class Good(Tuner):
    """Low-rank changes of both layers, the modification and what is attached open to be broken."""

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        for site in resolve(model, "{first,last}.weight"):
            yield site, self.change(site, generator)

    def change(self, site: Site, generator: Generator) -> Modification:
        return LowRank(site.shape or (), 2, 1.0, 0.0, generator)

    def attach(self, model: nn.Module, *, seed: int = 0, name: str | None = None) -> Tuned:
        return self.kind()(model, self, seed=seed, name=name)

    def kind(self) -> type[Tuned]:
        return Tuned


def test_a_sound_tuner_passes_and_the_model_is_as_before(model: nn.Module) -> None:
    before = {n: v.clone() for n, v in model.state_dict().items()}
    check_tuner(Good, model, BATCH)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


# ---------------------------------------------------------------- tuners with a broken modification


class NotZeroAtFirst(LowRank):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        nn.init.ones_(self.up)


class HalfIdle(LowRank):
    """Gets no gradient into `down`."""

    def delta(self) -> Tensor:
        return self.scale * self.up @ self.down.detach()

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        return layer.low_rank(x, self.down.detach(), self.scale * self.up)


class Nothing(LowRank):
    """Trains nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.requires_grad_(False)


class OtherWhenMerged(LowRank):
    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        return layer.low_rank(x, self.down, 2 * self.scale * self.up)


class Unsaved(LowRank):
    """Leaves its tensors out of the state."""

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {}


class RandomAgain(LowRank):
    """Computes with something that is neither saved nor drawn from the seed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.hidden = torch.rand(1)

    def delta(self) -> Tensor:
        return self.hidden * super().delta()

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        return layer.low_rank(x, self.down, self.hidden * self.up)


class Entangled(LowRank):
    """A closure over its own parameters: copies follow the original."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.through = lambda x, layer: layer.low_rank(x, self.down, self.scale * self.up)

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        return self.through(x, layer)


CHANGES = {
    NotZeroAtFirst: "untrained: an untrained tuner changes the output",
    HalfIdle: "learns: no gradient reached",
    Nothing: "learns: the tuner trains nothing",
    OtherWhenMerged: "merge: the merged model differs",
    Unsaved: "save: the loaded tuner gives another output",
    RandomAgain: "save: the loaded tuner gives another output",
    Entangled: "copy: a deep copy follows",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_broken_modification_of_a_tuner_is_caught(change: type[LowRank], model: nn.Module) -> None:
    @dataclass(frozen=True)
    class Broken(Good):
        def change(self, site: Site, generator: Generator) -> Modification:
            return change(site.shape, 2, 1.0, 0.0, generator)

    caught(lambda: check_tuner(Broken, model, BATCH), CHANGES[change])


# ---------------------------------------------------------------- tuners that are attached in a broken way


class MovesAWeight(Tuned):
    def detach(self) -> nn.Module:
        self.model.last.bias.data += 1e-6
        return super().detach()


class LeaksAHook(Tuned):
    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        model.first.register_forward_hook(lambda *_: None)


class ChangesFlags(Tuned):
    def detach(self) -> nn.Module:
        model = super().detach()
        return model.requires_grad_(False)


class ChangesModes(Tuned):
    def detach(self) -> nn.Module:
        return super().detach().train(not self.model.training)


class ChangesOrder(Tuned):
    """Takes a parameter out and puts it back at the end, as torch's own parametrizations do."""

    def detach(self) -> nn.Module:
        layer = super().detach().last
        layer._parameters["weight"] = layer._parameters.pop("weight")
        return self.model


class LeavesABuffer(Tuned):
    def detach(self) -> nn.Module:
        super().detach().register_buffer("left", torch.zeros(1))
        return self.model


class TrainsMore(Tuned):
    """A parameter that it doesn't count, and that is put back in the end."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.kept = model.last.bias.detach().clone()
        model.last.bias.requires_grad_(True)

    def detach(self) -> nn.Module:
        self.model.last.bias.data = self.kept
        return super().detach()


class MovesSilently(Tuned):
    """A frozen weight moves in every forward of training; it is put back in the end."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.kept = model.last.bias.detach().clone()
        self.hook = model.register_forward_pre_hook(self.move)

    def move(self, module: nn.Module, args: Any) -> None:
        if module.training:
            module.last.bias.data = module.last.bias.data + 0.1

    def detach(self) -> nn.Module:
        self.hook.remove()
        self.model.last.bias.data = self.kept
        return super().detach()


class MovesStatistics(Tuned):
    """Lets the statistics of norms run; they are put back in the end."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.kept = {n: b.clone() for n, b in model.norm.named_buffers()}
        for handle in self._freeze.handles:
            handle.remove()

    def detach(self) -> nn.Module:
        self.model.norm.load_state_dict(self.kept, strict=False)
        return super().detach()


class NeverOff(Tuned):
    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        yield self.model


class StaysOff(Tuned):
    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        self.disable()
        yield self.model


class FreezesWhenOff(Tuned):
    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        with super().disabled() as model:
            yield model
        self.trained[0].requires_grad_(False)


class UnmergesInexactly(Tuned):
    def unmerge(self) -> None:
        super().unmerge()
        self.model.first.weight.data += 1e-6


class OneNameForAll(Tuned):
    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **{**options, "name": "mine"})


ATTACHED = {
    MovesAWeight: "detach: a parameter or buffer is not bit-identical",
    LeaksAHook: "detach: hooks were left behind",
    ChangesModes: "detach: modules, their classes or their modes differ",
    TrainsMore: "frozen: ['last.bias'] has requires_grad and is not tuned",
    MovesSilently: "frozen: the frozen parameter ['last.bias'] moved",
    MovesStatistics: "frozen: the buffer ['norm.running_mean'] moved",
    NeverOff: "disabled: disabled() is not the base model",
    StaysOff: "disabled: the tuned model is another after disabled()",
    FreezesWhenOff: "disabled: disabled() changed requires_grad flags",
    UnmergesInexactly: "merge: unmerge does not restore the weights",
    OneNameForAll: "stacking: ValueError: the name 'mine' is taken",
}


@pytest.mark.parametrize("kind", ATTACHED)
def test_a_tuner_attached_in_a_broken_way_is_caught(kind: type[Tuned], model: nn.Module) -> None:
    @dataclass(frozen=True)
    class Broken(Good):
        def kind(self) -> type[Tuned]:
            return kind

    caught(lambda: check_tuner(Broken, model, BATCH), ATTACHED[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MovesAWeight, "a parameter or buffer is not bit-identical"),
        (LeaksAHook, "hooks were left behind"),
        (ChangesFlags, "requires_grad flags differ"),
        (ChangesModes, "modules, their classes or their modes differ"),
        (ChangesOrder, "the state dict has other keys or another order"),
        (LeavesABuffer, "the state dict has other keys or another order"),
    ],
)
def test_a_trace_that_detach_leaves_is_named(kind: type[Tuned], words: str, model: nn.Module) -> None:
    @dataclass(frozen=True)
    class Broken(Good):
        def kind(self) -> type[Tuned]:
            return kind

    caught(lambda: check_detach_restores(Broken, model, BATCH), words)


def test_another_base_that_is_not_refused_is_caught(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monochord.core.tuner.fingerprint", lambda _: "the same for all")
    caught(lambda: check_tuner(Good, model, BATCH), "save: a tuner of another base was loaded without a word")


def test_every_failure_is_listed_in_one_line(model: nn.Module) -> None:
    @dataclass(frozen=True)
    class Broken(Good):
        def change(self, site: Site, generator: Generator) -> Modification:
            return NotZeroAtFirst(site.shape, 2, 1.0, 0.0, generator)

        def kind(self) -> type[Tuned]:
            return NeverOff

    words = caught(lambda: check_tuner(Broken, model, BATCH), "Broken on Net fails 3 of 9 checks")
    assert "untrained: " in words and "disabled: " in words


def test_a_prompt_is_not_asked_to_change_nothing() -> None:
    import zoo

    @dataclass(frozen=True)
    class Prompts(Good):
        def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
            yield resolve(model, "embed:out")[0], Prompt(torch.randn(2, 32, generator=generator))

    check_tuner(Prompts, zoo.build("llama"), zoo.batch("llama"))


# ---------------------------------------------------------------- modifications


class Longer(Modification):
    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([value, value])


class Wider(Modification):
    def forward(self, value: Tensor) -> Tensor:
        return value.double()


class Stays(Modification):
    """Puts a hook of its own on the model."""

    def bind(self, site: Site, model: nn.Module) -> Modification:
        model.get_submodule(site.module).register_forward_hook(lambda module, args, output: output + 1)
        return self

    def forward(self, value: Tensor) -> Tensor:
        return value


class InPlace(Modification):
    """Changes a weight of the model while it runs."""

    def bind(self, site: Site, model: nn.Module) -> Modification:
        self.weight = (model.get_submodule(site.module).weight,)
        return self

    def forward(self, value: Tensor) -> Tensor:
        self.weight[0].data += 1
        return value


MODIFICATIONS = {
    Longer: "shape: it turns (5, 3) into (10, 3)",
    Wider: "shape: it turns",
    Stays: "detach: disabled it still acts",
    InPlace: "detach: disabled it still acts",
}


@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_a_broken_modification_is_caught(modification: type[Modification], model: nn.Module) -> None:
    caught(lambda: check_modification(modification(), model, "last:out", BATCH), MODIFICATIONS[modification])


def test_a_sound_modification_passes(model: nn.Module) -> None:
    check_modification(Add(torch.ones(6)), model, "first:out", BATCH)


# ---------------------------------------------------------------- objectives


class Square(Objective):
    """The mean squared output, with parts to break."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        total = self.total(model(**batch))
        return Loss(total, {"square": float(total.detach().mean())})

    def total(self, output: Tensor) -> Tensor:
        return output.square().mean()


class NoScalar(Square):
    def total(self, output: Tensor) -> Tensor:
        return output.square().mean(0)


class NotANumber(Square):
    def total(self, output: Tensor) -> Tensor:
        return (output - 1e9).log().mean()


class NoTerms(Square):
    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        return Loss(self.total(model(**batch)))


class NoGradient(Square):
    def total(self, output: Tensor) -> Tensor:
        return output.detach().square().mean()


class ScalesOddly(Square):
    def __mul__(self, weight: Any) -> Objective:
        return super().__mul__(weight**2)

    __rmul__ = __mul__


class Forgetful(Square):
    """Another value at every call, so that sums don't add up."""

    calls = 0

    def total(self, output: Tensor) -> Tensor:
        self.calls += 1
        return output.square().mean() * self.calls


class AddsOddly(Square):
    def __add__(self, other: Objective) -> Objective:
        return self


OBJECTIVES = {
    NoScalar: "the total is no finite scalar",
    NotANumber: "the total is no finite scalar",
    NoTerms: "the loss names no terms",
    NoGradient: "the loss has no gradient",
    ScalesOddly: "2 * objective is not twice the loss",
    Forgetful: "is not twice the loss",
    AddsOddly: "objective + objective is not twice the loss",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_broken_objective_is_caught(objective: type[Objective], model: nn.Module) -> None:
    caught(lambda: check_objective(objective(), model, BATCH), OBJECTIVES[objective])


def test_a_sound_objective_passes(model: nn.Module) -> None:
    check_objective(Square(), model, BATCH)


# ---------------------------------------------------------------- updates


class MovesAll(Gradient):
    """Decays frozen parameters too."""

    def step(self, model: nn.Module, *args: Any, **options: Any) -> Loss:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        return super().step(model, *args, **options)


class LeavesOneOut(Gradient):
    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        model.last.bias.requires_grad_(False)
        super().setup(model, accelerator)
        model.last.bias.requires_grad_(True)


class Random(Gradient):
    """Noise from the global generator."""

    def step(self, model: nn.Module, *args: Any, **options: Any) -> Loss:
        with torch.no_grad():
            model.last.weight.add_(torch.randn_like(model.last.weight))
        return super().step(model, *args, **options)


UPDATES = {
    MovesAll: "first.bias moved without requires_grad",
    LeavesOneOut: "last.bias trains and did not move in 2 steps",
    Random: "two runs from the same state end differently",
}


def half_frozen(model: nn.Module) -> nn.Module:
    model.first.requires_grad_(False)
    return model


@pytest.mark.parametrize("update", UPDATES)
def test_a_broken_update_is_caught(update: type[Update], model: nn.Module) -> None:
    caught(lambda: check_update(update, half_frozen(model), BATCH, Square()), UPDATES[update])


def test_a_sound_update_passes_and_restores_the_model(model: nn.Module) -> None:
    before = {n: v.clone() for n, v in model.state_dict().items()}
    check_update(lambda: Gradient(lr=0.1), half_frozen(model), BATCH, Square())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def caught(check: Callable[[], None], words: str) -> str:
    """The check fails, names what it found, in one line."""
    with pytest.raises(ConformanceError) as error:
        check()
    message = str(error.value)
    assert words in message and "\n" not in message
    return message
