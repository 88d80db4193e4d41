"""Tuners: recipes that say which modifications go where in a model and what trains.

    tuned = LoRA(rank=4).attach(model)
    mc.fit(model, data, objective, steps=100, lr=1e-3)
    tuned.save("lora"); tuned.delta().save("lora.safetensors"); tuned.merge()

A tuner is a frozen dataclass with one method to write, `plan`. Attaching, freezing, switching off, counting,
saving, merging and composing are the same for all and live here. Frozen means bit-identical: nothing but the
tuned parameters trains, and the running statistics of norms stand still.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from monochord.core import registry
from monochord.core.attach import Attachment, Placement
from monochord.core.blocks import owned
from monochord.core.changes import Unfrozen
from monochord.core.delta import Delta
from monochord.core.entries import Dense, Entry
from monochord.core.forward import evaluating
from monochord.core.lowrank import LowRank
from monochord.core.modification import Modification, WeightModification
from monochord.core.objective import Batch, Objective
from monochord.core.sites import Site, as_applied
from monochord.core.storage import StorageError, fingerprint, load_folder, save_folder

_FORMAT = "monochord tuner 1"
_FREEZE = "_monochord_freeze"


@dataclass(frozen=True)
class Tuner:
    """A recipe. Subclasses are frozen dataclasses that write `plan`; tuners compose with `|`.

    A class attribute `default_lr` says around which learning rate comparisons look.
    """

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        """Yield (site, modification) for this model; random numbers come from `generator` only."""
        raise NotImplementedError(f"{type(self).__name__} has to define plan(model, generator)")

    def attach(self, model: nn.Module, *, seed: int = 0, name: str | None = None) -> Tuned:
        """Attach to `model`: from now on only the tuned parameters train. `detach()` restores everything.

        Raises `SiteError` when a site pattern matches nothing.
        """
        return Tuned(model, self, seed=seed, name=name)

    def for_task(self, model: nn.Module, batches: Iterable[Batch], objective: Objective) -> Tuner:
        """The recipe for what is to be learnt: itself, unless data have a say in its plan."""
        return self

    def of_saved(self, tensors: dict[str, Tensor]) -> Tuner:
        """The recipe that makes room for saved tensors: itself, unless data had a say in its plan."""
        return self

    def __or__(self, other: Tuner) -> Tuner:
        return Compose((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Compose(Tuner):
    """Several tuners in one model, in order; written `LoRA() | PromptTokens()`."""

    tuners: tuple[Tuner, ...]

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        for tuner in self.tuners:
            yield from tuner.plan(model, generator)

    def for_task(self, model: nn.Module, batches: Iterable[Batch], objective: Objective) -> Tuner:
        return Compose(tuple(tuner.for_task(model, batches, objective) for tuner in self.tuners))

    def of_saved(self, tensors: dict[str, Tensor]) -> Tuner:
        return Compose(tuple(tuner.of_saved(tensors) for tuner in self.tuners))


class Tuned(Attachment):
    """A tuner attached to a model, with what it trains."""

    def __init__(self, model: nn.Module, tuner: Tuner, *, seed: int = 0, name: str | None = None) -> None:
        model = getattr(model, "_orig_mod", model)
        self.tuner, self.seed, self.base = tuner, seed, fingerprint(model)
        placements = list(tuner.plan(model, Generator().manual_seed(seed)))
        for site, change in placements:
            change.to(_device(model, site))
        self._freeze = _Freeze.of(model)
        super().__init__(model, placements, name=name)
        self.trained = list(self._trained())
        self._freeze.add(self)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains, each parameter once."""
        return iter(self.trained)

    @property
    def n_trainable(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.trained)

    def detach(self) -> nn.Module:
        """Take the tuner off: weights, flags, hooks and order are as they were before."""
        model = super().detach()
        self._freeze.drop(self)
        return model

    def delta(self) -> Delta:
        """The change of the model's own weights, factored where the tuner is.

        Raises `ValueError` for a modification that is no change of weights (adapters, prompts).
        """
        found = Delta({})
        for site, change in self.placements:
            if isinstance(change, WeightModification):
                weight = owned(self.model.get_submodule(site.module), site.parameter).detach()
                with torch.no_grad(), evaluating(change):
                    entry = change.entry(as_applied(weight, site))
                    found = found + Delta({site.path: _place(entry, site, tuple(weight.shape))})
                continue
            folded = change.fold(site, self.model)
            if folded is None:
                kind = type(change).__name__
                raise ValueError(f"{kind} at {site} changes no weights, so there is no delta: use save(folder)")
            state = dict(self.model.named_parameters(remove_duplicate=False))
            found = found + Delta({path: Dense(value - state[path].detach()) for path, value in folded.items()})
        return Delta(dict(found), self.base)

    # ------------------------------------------------------------ saving

    def state(self) -> dict[str, Tensor]:
        """The tensors that make up what was tuned, by site and name."""
        return {f"{key}/{name}": value for key, change in self._keyed() for name, value in change.saved().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of `state()`; every one has to find its place, and no place stay empty."""
        expected = self.state()
        missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        if missing or extra:
            what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which this tuner has not"
            raise StorageError(f"the saved tuner {what} ({len(missing)} missing, {len(extra)} too many)")
        for name, value in expected.items():
            if value.shape != tensors[name].shape:
                raise StorageError(f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(value.shape)} here")
        with torch.no_grad():
            for key, change in self._keyed():
                change.restore({name: tensors[f"{key}/{name}"] for name in change.saved()})

    def save(self, folder: str | os.PathLike[str], format: str = "monochord") -> None:
        """Write what was tuned, and only that: safetensors and JSON. `format="peft"` writes PEFT's LoRA folder."""
        if format == "peft":
            from monochord.core.peft_folder import save_peft

            return save_peft(self, folder)
        if format != "monochord":
            raise ValueError(f"format={format!r} is unknown: use 'monochord' or 'peft'")
        config = {"format": _FORMAT, "tuner": registry.describe(self.tuner), "seed": self.seed, "base": self.base}
        save_folder(folder, self.state(), config)

    @classmethod
    def load(
        cls,
        model: nn.Module,
        folder: str | os.PathLike[str],
        *,
        tuner: Tuner | None = None,
        name: str | None = None,
        strict: bool = True,
    ) -> Tuned:
        """Attach a saved tuner (or a PEFT LoRA folder) to `model`.

        `tuner` is the recipe where its class is none of the registered methods. Raises `StorageError` when the
        model is not the base it was tuned from, unless `strict=False`, and for damaged or foreign files.
        """
        if os.path.exists(os.path.join(folder, "adapter_config.json")):
            from monochord.core.peft_folder import load_peft

            return load_peft(model, folder, name=name, strict=strict)
        tensors, config = load_folder(folder)
        if config.get("format") != _FORMAT:
            raise StorageError(f"{folder} holds no tuner: expected {_FORMAT!r}, found {config.get('format')!r}")
        found = fingerprint(getattr(model, "_orig_mod", model))
        if strict and config["base"] != found:
            raise StorageError(
                f"{folder} was tuned from base {config['base'][:12]}, this model is {found[:12]}: "
                "load that base, or pass strict=False to attach it anyway"
            )
        recipe = (tuner or registry.build(config["tuner"])).of_saved(tensors)
        tuned = recipe.attach(model, seed=config["seed"], name=name)
        try:
            tuned.load_state(tensors)
        except BaseException:
            tuned.detach()
            raise
        return tuned

    def _trained(self) -> Iterator[nn.Parameter]:
        seen: set[int] = set()
        for _, change in self.placements:
            for parameter in [change.parameter] if isinstance(change, Unfrozen) else list(change.parameters()):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def _keyed(self) -> Iterator[tuple[str, Modification]]:
        """Each modification with a name of its own: its site, numbered where several share one."""
        count: dict[str, int] = {}
        for site, change in self.placements:
            key = str(site)
            count[key] = count.get(key, 0) + 1
            yield (key if count[key] == 1 else f"{key}@{count[key]}"), change


def _parts(tuner: Tuner) -> tuple[Tuner, ...]:
    return tuner.tuners if isinstance(tuner, Compose) else (tuner,)


def _device(model: nn.Module, site: Site) -> torch.device:
    """Where the tensors of the site's module live (those of the model, where it has none)."""
    own = next(model.get_submodule(site.module).parameters(), None)
    first = own if own is not None else next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def _place(entry: Entry, site: Site, shape: tuple[int, ...]) -> Entry:
    """The entry of a slice or of a transposed weight as an entry of the stored parameter."""
    if site.rows is None and not site.transposed:
        return entry
    rows = torch.tensor(site.rows if site.rows is not None else range(entry.shape[0]))
    outputs = shape[1] if site.transposed else shape[0]
    if isinstance(entry, LowRank):
        up = entry.up.new_zeros(outputs, entry.up.shape[1]).index_copy(0, rows.to(entry.up.device), entry.up)
        return LowRank(entry.down.t(), up.t(), entry.scale) if site.transposed else LowRank(up, entry.down, entry.scale)
    change = entry.dense()
    whole = change.new_zeros(outputs, *change.shape[1:]).index_copy(0, rows.to(change.device), change)
    return Dense(whole.t() if site.transposed else whole)


# ---------------------------------------------------------------- freezing


@dataclass
class _Freeze:
    """Of one model: nothing trains but what the tuner attached last trains; as before when none is left."""

    model: nn.Module
    flags: list[tuple[nn.Parameter, bool]]
    tuned: list[Tuned] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module) -> _Freeze:
        """The one of this model, made when its first tuner comes."""
        found = model.__dict__.get(_FREEZE)
        return found if found is not None else cls(model, [(p, p.requires_grad) for p in model.parameters()])

    def add(self, tuned: Tuned) -> None:
        if not self.tuned:
            object.__setattr__(self.model, _FREEZE, self)
            ours = {id(m) for _, change in tuned.placements for m in change.modules()}  # a tuner's own norms learn
            norms = [m for m in self.model.modules() if getattr(m, "running_mean", None) is not None]
            norms = [m for m in norms if id(m) not in ours]
            self.handles = [m.register_forward_pre_hook(_stand_still) for m in norms]
        self.tuned.append(tuned)
        own = {id(p) for p in tuned.trained}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in own)

    def drop(self, tuned: Tuned) -> None:
        if all(t is not tuned for t in self.tuned):
            return
        self.tuned = [t for t in self.tuned if t is not tuned]
        if self.tuned:
            own = {id(p) for p in self.tuned[-1].trained}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in own)
            return
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)
        for handle in self.handles:
            handle.remove()
        object.__delattr__(self.model, _FREEZE)


def _stand_still(module: nn.Module, args: Any) -> None:
    """Running statistics of a frozen norm neither change nor give way to those of the batch."""
    module.training = False
