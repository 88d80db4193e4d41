"""Put modifications at sites of a model, and take them off again without a trace.

    with mc.attach(model, {"blocks.5:out": mc.Add(v, scale=4)}):
        model.generate(**prompt)

A temporary modification steers, a trainable one tunes, a merged one edits. Attached modules live under the
model's child `monochord`, so optimizers, DDP, FSDP and `state_dict` see their parameters.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monochord.core.anatomy import OURS
from monochord.core.changes import Unfrozen
from monochord.core.merge import Saved, fold, restore, unmergeable
from monochord.core.modification import Apply, Modification, WeightModification
from monochord.core.narrowing import active, needs_call, put
from monochord.core.ports import Call, Handle, Inputs, first_tensor, install
from monochord.core.prompt import Prompt, install_prompt
from monochord.core.receipt import Receipt
from monochord.core.sites import Site, SiteError, resolve
from monochord.core.switch import Switch
from monochord.core.weights import install_weights

if TYPE_CHECKING:
    from typing_extensions import Self

Change = Modification | Callable[[Tensor], Tensor]
Placement = tuple[Site, Modification]


def attach(
    model: nn.Module,
    changes: Mapping[str, Change] | Iterable[Placement],
    *,
    name: str | None = None,
    roles: dict[str, Tensor] | None = None,
    blocks: str | None = None,
) -> Attachment:
    """Attach modifications (or plain functions of the value) to the sites that the patterns name.

    The model is changed at once; use the result as a context manager, or call `detach()`, to restore it bit
    for bit. `roles` are (batch, seq) masks for `[role=...]` selectors. Raises `SiteError` for a pattern that
    matches nothing; a site that the first forward doesn't reach is an error too.
    """
    base = getattr(model, "_orig_mod", model)
    if isinstance(changes, Mapping):
        placed = [
            (site, change if isinstance(change, Modification) else Apply(change))
            for pattern, change in changes.items()
            for site in resolve(base, pattern, blocks=blocks, kind=_kind(change))
        ]
    else:
        placed = list(changes)
    return Attachment(model, placed, name=name, roles=roles)


class Attachment:
    """Modifications attached to a model under one name; several of them stack and detach in any order.

    `model` is the model, `placements` what sits where, `receipt` says what was covered and what was not.
    """

    def __init__(
        self,
        model: nn.Module,
        placements: list[Placement],
        *,
        name: str | None = None,
        roles: dict[str, Tensor] | None = None,
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.placements = [(site, change.bind(site, self.model)) for site, change in placements]
        self.receipt = Receipt.of(self.model, self.placements)
        self.switch = Switch()
        self.name = self._register(name)
        self._merged: Saved | None = None
        self._handles: list[Handle] = []
        self._call = Call(self.model, roles) if any(needs_call(s.selector) for s, _ in placements) else None
        try:
            self._install()
        except BaseException:
            self.detach()
            raise
        if "torch._dynamo" in sys.modules:  # a hook put on after compilation would be ignored: compile anew
            sys.modules["torch._dynamo"].reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {self.receipt})"

    # ------------------------------------------------------------ switching

    @property
    def enabled(self) -> bool:
        """Whether the modifications act."""
        return self.switch.strength is not None

    def disable(self) -> None:
        """Let the model run as if nothing were attached."""
        if self.enabled:
            self._turn(None)

    def enable(self) -> None:
        """Let the modifications act (again)."""
        if not self.enabled and self._merged is None:
            self._turn(1.0)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """The model without this attachment for the length of a block: the reference without a second copy."""
        before = self.switch.strength
        self.disable()
        try:
            yield self.model
        finally:
            if before is not None:
                self._turn(before)

    def weigh(self, strength: float | Tensor) -> None:
        """Scale every modification: one number, or one an example, shape (batch,), which routes by example."""
        if any(isinstance(m, (Unfrozen, Prompt)) for _, m in self.placements):
            raise ValueError("weights trained in place and prompts are on or off: use enable() and disable()")
        self.switch.strength = strength

    def detach(self) -> nn.Module:
        """Take everything off: the model is bit-identical to what it was, parameter order included."""
        if self._merged is not None:
            self.unmerge()
        self.enable()
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        if self._call is not None:
            self._call.remove()
            self._call = None
        home = _home(self.model)
        holder = home._modules.get(OURS)
        if holder is not None:
            holder._modules.pop(self.name, None)
            if not holder._modules:
                del home._modules[OURS]
        return self.model

    # ------------------------------------------------------------ merging

    @property
    def mergeable(self) -> bool:
        """Whether every modification can be written into the model's own weights."""
        return unmergeable(self.placements, self.model) is None

    def merge(self, verify: Mapping[str, Any] | None = None, tied: str | None = None) -> float | None:
        """Write the modifications into the model's weights; `unmerge()` or `detach()` restores them exactly.

        `verify` is a batch: the largest difference of outputs before and after is returned. A tied weight is
        refused unless `tied="both"` (both uses change) or `tied="untie"` (only the named one does). Raises
        `ValueError` naming a modification that can't be merged.
        """
        if self._merged is not None:
            raise ValueError(f"{self.name!r} is merged already: unmerge() first")
        reason = unmergeable(self.placements, self.model)
        if reason:
            raise ValueError(reason)
        before = self._output(verify) if verify is not None else None
        self._merged = fold(self.placements, self.model, self.switch.strength, tied)
        self._kept, self.switch.strength = self.switch.strength, None
        return None if before is None else float((self._output(verify) - before).abs().max())

    def unmerge(self) -> None:
        """Undo `merge()`: the weights are restored bit for bit and the modifications act beside them again."""
        if self._merged is None:
            raise ValueError(f"{self.name!r} is not merged")
        restore(self.model, self._merged)
        self._merged, self.switch.strength = None, self._kept

    @torch.no_grad()
    def _output(self, batch: Mapping[str, Any] | None) -> Tensor:
        training = self.model.training
        self.model.eval()
        try:
            output = self.model(**(batch or {}))
            logits = getattr(output, "logits", None)
            return (logits if isinstance(logits, Tensor) else first_tensor(output)).float()
        finally:
            self.model.train(training)

    # ------------------------------------------------------------ inside

    def _register(self, name: str | None) -> str:
        """Give the modules their place in the model, so that whoever walks its parameters finds them."""
        home = _home(self.model)
        holder = home._modules.get(OURS)
        taken = set(holder._modules) if holder is not None else set()
        if name is None:
            name = next(n for n in (f"attachment{i}" for i in range(len(taken) + 1)) if n not in taken)
        if name in taken or "." in name or not name:
            raise ValueError(f"the name {name!r} is taken or not valid: use one without dots besides {sorted(taken)}")
        if holder is None:
            holder = nn.ModuleDict().train(self.model.training)
            home.add_module(OURS, holder)
        modules = nn.ModuleList([m for _, m in self.placements])
        modules.train(self.model.training)
        holder.add_module(name, modules)
        return name

    def _install(self) -> None:
        weights = []
        for i, (site, change) in enumerate(self.placements):
            if isinstance(change, Prompt):
                self._handles += install_prompt(self.model, site, change, self.switch, i)
            elif isinstance(change, WeightModification):
                if site.port != "weight":
                    raise SiteError(f"{type(change).__name__} changes weights, and {site} is none: name a parameter")
                weights.append((i, site, change))
            elif (own := change.install(site, self.model, self.switch, i)) is not None:
                self._handles += own
            else:
                act = _Act(i, site, change, self.switch, self._call)
                self._handles += install(self.model, site, act, reads=change.reads != "value")
        for handle in install_weights(self.model, weights, self.switch):
            self._handles.append(handle)  # one by one: those before a failure have to be taken off again
        self._checker = self.model.register_forward_hook(self._check)
        self._handles.append(self._checker)

    def _check(self, model: nn.Module, args: Any, output: Any) -> None:
        """After the first forward that the modifications took part in: every site must have been reached."""
        if not self.enabled:
            return
        reached = self.switch.reached
        silent = [s for i, (s, _) in enumerate(self.placements) if i not in reached and not _optional(s)]
        if silent:
            raise SiteError(
                f"{silent[0]} was never reached in the first forward ({len(silent)} of {len(self.placements)} sites): "
                "this module is not called in this kind of run, choose another site"
            )
        self._checker.remove()  # once is enough

    def _turn(self, strength: float | Tensor | None) -> None:
        """Set the strength; weights trained in place change sides with it."""
        self.switch.strength = strength
        for _, change in self.placements:
            if isinstance(change, Unfrozen):
                change.switch(strength is not None)


@dataclass
class _Act:
    """What a modification does to the value that a hook hands it."""

    number: int
    site: Site
    change: Modification
    switch: Switch
    call: Call | None

    @property
    def idle(self) -> bool:
        """Whether it will leave every value as it is."""
        return self.switch.strength is None

    def __call__(self, value: Tensor, inputs: Inputs | None) -> Tensor | None:
        switch, change = self.switch, self.change
        if switch.strength is None:
            return None
        switch.reached.add(self.number)
        if change.reads == "input":
            new = change(value, _first_input(inputs))
        elif change.reads == "call" and not self.site.selector:
            args, kwargs = inputs or ((), {})
            new = change(value, *args, **kwargs)
        elif not self.site.selector:
            new = change(value)
        elif active(self.site, self.call):
            new = put(value, self.site, self.call, change)
        else:
            return None
        return switch.blend(value, new)


def _home(model: nn.Module) -> nn.Module:
    """Where attachments live: the model itself, or its first module that does not run whatever it contains."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return next((m for m in model.modules() if not isinstance(m, containers)), model)


def _kind(change: object) -> str | None:
    return "weight" if isinstance(change, WeightModification) else None


def _first_input(inputs: Inputs | None) -> Tensor:
    args, kwargs = inputs or ((), {})
    return args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))


def _optional(site: Site) -> bool:
    """Sites that a forward may rightly pass by: experts that get no token, steps to come, gradients, caches."""
    s = site.selector
    return "experts" in site.name or s.steps is not None or s.call is not None or site.port in ("grad", "state")
