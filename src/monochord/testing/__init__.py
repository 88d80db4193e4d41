"""The conformance kit: what every tuner, modification, objective and update has to hold, as callable checks.

    from monochord.testing import check_tuner
    check_tuner(lambda: MyTuner(rank=4), model, batch)

Each `check_*` of one idea raises `ConformanceError` with one line that says what failed; `check_tuner` and its
siblings run all that apply. Our own tests call these for the same invariants. The model given is restored.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from monochord.core.attach import attach
from monochord.core.changes import Unfrozen
from monochord.core.modification import Modification
from monochord.core.objective import Objective
from monochord.core.sites import SiteError, resolve
from monochord.core.storage import StorageError
from monochord.core.tuner import Tuned, Tuner
from monochord.core.update import Update
from monochord.testing.tools import (
    ConformanceError,
    Deliberate,
    Trace,
    check_all,
    evaluating,
    require,
    require_close,
    run,
    same,
    train,
    values,
)

Batch = Mapping[str, Any]
Factory = Callable[[], Tuner]


def check_tuner(factory: Factory, model: nn.Module, batch: Batch, *, tolerance: float = 1e-5) -> None:
    """Run every invariant that applies to a tuner; raises one `ConformanceError` that lists those that fail."""
    factory().attach(copy.deepcopy(model))  # what can't be attached here says so itself
    check_all(
        f"{type(factory()).__name__} on {type(model).__name__}",
        {
            "untrained": lambda: check_untrained_changes_nothing(factory, model, batch),
            "detach": lambda: check_detach_restores(factory, model, batch),
            "frozen": lambda: check_frozen_stays(factory, model, batch),
            "learns": lambda: check_gradients_reach(factory, model, batch),
            "disabled": lambda: check_disabled_is_base(factory, model, batch),
            "merge": lambda: check_merge(factory, model, batch, tolerance),
            "save": lambda: check_save_and_load(factory, model, batch),
            "stacking": lambda: check_stacking(factory, model, batch),
            "copy": lambda: check_deep_copy(factory, model, batch),
        },
    )


def check_modification(modification: Modification, model: nn.Module, site: str, batch: Batch) -> None:
    """A modification keeps shape and dtype, acts only while attached and leaves no trace."""
    check_all(
        f"{type(modification).__name__} at {site}",
        {
            "shape": lambda: _check_shape(modification, model, site, batch),
            "detach": lambda: _check_trace(modification, model, site, batch),
        },
    )


def check_objective(objective: Objective, model: nn.Module, batch: Batch) -> None:
    """An objective gives a finite scalar with named terms, a gradient, and scales and adds as numbers do."""
    once = objective(model, batch)
    require(once.total.dim() == 0 and bool(torch.isfinite(once.total)), "the total is no finite scalar")
    require(bool(once.terms), "the loss names no terms")
    twice, total = (2.0 * objective)(model, batch).total, (objective + objective)(model, batch).total
    require(torch.allclose(twice, 2 * once.total), "2 * objective is not twice the loss")
    require(torch.allclose(total, 2 * once.total), "objective + objective is not twice the loss")
    if any(p.requires_grad for p in model.parameters()):
        require(once.total.requires_grad, "the loss has no gradient")


def check_update(
    factory: Callable[[], Update], model: nn.Module, batch: Batch, objective: Objective, steps: int = 2
) -> None:
    """An update moves every parameter that trains and no other, and repeats itself from its saved state."""
    state = {n: p.detach().clone() for n, p in model.state_dict().items()}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    try:
        ends = []
        for _ in range(2):
            model.load_state_dict(state)
            update = factory()
            update.setup(model)
            for _ in range(steps):
                update.step(model, batch, objective)
            ends.append({n: p.detach().clone() for n, p in model.named_parameters()})
        moved = {n for n, p in ends[0].items() if not torch.equal(p, state[n])}
        require(moved <= trains, f"{min(moved - trains, default='')} moved without requires_grad")
        require(trains <= moved, f"{min(trains - moved, default='')} trains and did not move in {steps} steps")
        same = all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])
        require(same, "two runs from the same state end differently")
        model.load_state_dict(state)
        saved: dict[str, Any] | None = None
        for _ in range(steps):  # each step by a new update that takes over the state of the one before
            resumed = factory()
            resumed.setup(model)
            if saved is not None:
                resumed.load_state_dict(saved)
            resumed.step(model, batch, objective)
            saved = copy.deepcopy(resumed.state_dict())
        same = all(torch.equal(ends[0][n], p) for n, p in model.named_parameters())
        require(same, "an update that takes over a saved state goes on differently")
    finally:
        model.load_state_dict(state)


# ---------------------------------------------------------------- one check an idea


def check_untrained_changes_nothing(factory: Factory, model: nn.Module, batch: Batch, atol: float = 1e-6) -> None:
    """An attached but untrained tuner leaves the output as it is (prompts, which can't, are passed over)."""
    before = run(model, batch)
    with factory().attach(model) as tuned:
        if all(change.neutral for _, change in tuned.placements):
            require_close(run(model, batch), before, atol, "an untrained tuner changes the output")


def check_detach_restores(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """Attach and detach, also after training and after an exception, leave no bit and no hook behind."""
    before, trace = run(model, batch), Trace(model)
    tuned = factory().attach(model)
    train(tuned, batch)
    tuned.detach()
    trace.require_same(model)
    require(torch.equal(run(model, batch), before), "the output after detach differs from the one before")
    with contextlib.suppress(Deliberate), factory().attach(model):
        run(model, batch)
        raise Deliberate
    trace.require_same(model)


def check_frozen_stays(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """What is frozen stays bit-identical through AdamW with decay, momentum and moving averages of the model."""
    tuned = factory().attach(model)
    try:
        own = {id(p) for p in tuned.trained} | {id(b) for _, change in tuned.placements for b in change.buffers()}
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in own}
        buffers = {n: b.detach().clone() for n, b in model.named_buffers() if id(b) not in own}
        ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
        train(tuned, batch, averaged=average)
        trains = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        require(not trains, f"{trains[:1]} has requires_grad and is not tuned")
        now = dict(model.named_parameters())
        moved = [n for n, p in frozen.items() if not torch.equal(now[n], p)]
        require(not moved, f"the frozen parameter {moved[:1]} moved")
        moved = [n for n, b in model.named_buffers() if n in buffers and not torch.equal(b, buffers[n])]
        require(not moved, f"the buffer {moved[:1]} moved")
        averaged = {n: p for n, p in average.module.named_parameters() if n in frozen}
        moved = [n for n, p in averaged.items() if not torch.equal(p, frozen[n])]
        require(not moved, f"{moved[:1]} moved in the moving average")
    finally:
        tuned.detach()


def check_gradients_reach(factory: Factory, model: nn.Module, batch: Batch, steps: int = 3) -> None:
    """After a few steps every trained parameter has moved."""
    with factory().attach(model) as tuned:
        require(tuned.n_trainable > 0, "the tuner trains nothing")
        own = {id(c.parameter) for _, c in tuned.placements if isinstance(c, Unfrozen)}
        start = [p.detach().clone() for p in tuned.trained]
        train(tuned, batch, steps=steps, decay=0.0)
        names = {id(p): n for n, p in model.named_parameters()}
        still = [names.get(id(p), "?") for p, s in zip(tuned.trained, start, strict=True) if torch.equal(p, s)]
        # an expert that got no token and a weight of the model that its output never uses have none to get
        idle = {names[id(p)] for p in tuned.trained if id(p) in own and p.grad is None}
        used = [n for n in still if "experts" not in n and n not in idle]
        require(not used, f"no gradient reached {used[:1]} in {steps} steps ({len(used)} parameters)")


def check_disabled_is_base(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """`disabled()` equals a deep copy of the base, and enabling brings the tuned model back."""
    base = copy.deepcopy(model)
    with factory().attach(model) as tuned:
        train(tuned, batch)
        after = run(model, batch)
        flags = [p.requires_grad for p in model.parameters()]
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in base.named_parameters():  # torch's matmul rounds by these flags, gradients or not
            parameter.requires_grad_(name in trains)
        with tuned.disabled():
            require(torch.equal(run(model, batch), run(base, batch)), "disabled() is not the base model")
        require(flags == [p.requires_grad for p in model.parameters()], "disabled() changed requires_grad flags")
        require(torch.equal(run(model, batch), after), "the tuned model is another after disabled()")
        require(not torch.equal(after, run(base, batch)), "training changed nothing")


def check_merge(factory: Factory, model: nn.Module, batch: Batch, tolerance: float = 1e-5) -> None:
    """Where a tuner can be merged, merged equals unmerged, and unmerging restores the weights bit for bit."""
    with factory().attach(model) as tuned:
        if not tuned.mergeable:
            return
        train(tuned, batch)
        state, before = values(model), run(model, batch)
        tuned.merge(tied="both")
        require_close(run(model, batch), before, tolerance, "the merged model differs from the tuned one")
        tuned.unmerge()
        require(same(state, values(model)), "unmerge does not restore the weights")
        require(torch.equal(run(model, batch), before), "the output after unmerge differs")


def check_save_and_load(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """Saved and loaded, the tuner is the same bit for bit; another base is refused, and left untouched."""
    with tempfile.TemporaryDirectory() as folder:
        with factory().attach(model) as tuned:
            train(tuned, batch)
            state, output = {k: v.clone() for k, v in tuned.state().items()}, run(model, batch)
            tuned.save(folder)
        with Tuned.load(model, folder, tuner=factory()) as loaded:
            require(same(state, loaded.state()), "the loaded tensors are not the saved ones")
            require(torch.equal(run(model, batch), output), "the loaded tuner gives another output")
        other = copy.deepcopy(model)
        with torch.no_grad():
            next(p for p in other.parameters() if p.is_floating_point()).add_(1.0)
        trace = Trace(other)
        try:
            Tuned.load(other, folder, tuner=factory())
        except StorageError:
            trace.require_same(other)
        else:
            raise ConformanceError("a tuner of another base was loaded without a word")


def check_stacking(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """Two of them stack and detach in either order without a trace; two in place on one weight are refused."""
    before, trace = run(model, batch), Trace(model)
    with factory().attach(model) as tuned:
        in_place = any(isinstance(change, Unfrozen) for _, change in tuned.placements)
        if in_place:
            train(tuned, batch)
            after = run(model, batch)
            with contextlib.suppress(SiteError):
                factory().attach(model).detach()
                raise ConformanceError("a weight that is tuned in place was given to a second tuner")
            require(torch.equal(run(model, batch), after), "a refused tuner changed the one that was there")
    trace.require_same(model)
    if in_place:
        return
    for first in (0, 1):
        pair: list[Tuned] = []
        for seed in (0, 1):
            pair.append(factory().attach(model, seed=seed))
            train(pair[-1], batch)
        with pair[first].disabled():
            alone = run(model, batch)
        pair.pop(first).detach()
        require_close(run(model, batch), alone, 1e-6, "the one that stays acts otherwise when the other leaves")
        pair.pop().detach()
        trace.require_same(model)
    require(torch.equal(run(model, batch), before), "the output after stacking differs from the one before")


def check_deep_copy(factory: Factory, model: nn.Module, batch: Batch) -> None:
    """A deep copy of a tuned model stands on its own: it computes the same and follows only its own parameters."""
    with factory().attach(model) as tuned:
        train(tuned, batch)
        before = run(model, batch)
        twin = copy.deepcopy(model)
        train(tuned, batch)
        require_close(run(twin, batch), before, 1e-6, "a deep copy follows the parameters of the original")


def _check_shape(modification: Modification, model: nn.Module, site: str, batch: Batch) -> None:
    from monochord.core.capture import capture

    name = str(resolve(model, site)[0])
    with torch.no_grad(), evaluating(model), capture(model, name) as before:
        model(**batch)
    with torch.no_grad(), evaluating(model), attach(model, {name: modification}), capture(model, name) as after:
        model(**batch)
    a, b = before[name], after[name]
    require(a.shape == b.shape, f"it turns {tuple(a.shape)} into {tuple(b.shape)}")
    require(a.dtype == b.dtype, f"it turns {a.dtype} into {b.dtype}")


def _check_trace(modification: Modification, model: nn.Module, site: str, batch: Batch) -> None:
    before, trace = run(model, batch), Trace(model)
    with attach(model, {site: modification}) as attachment:
        run(model, batch)
        with attachment.disabled():
            require(torch.equal(run(model, batch), before), "disabled it still acts")
    trace.require_same(model)
    require(torch.equal(run(model, batch), before), "the output after detach differs")
