"""Read activations and gradients at sites, whole or streamed into a statistic.

    with mc.capture(model, "blocks.*.mlp:out") as acts:
        model(**batch)
    acts["blocks.3.mlp:out"]        # (batch, seq, d_model)

Only the named sites are kept. With `reduce` nothing is kept but a running statistic of each site.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monochord.core.narrowing import active, needs_call, take
from monochord.core.ports import Call, Handle, first_tensor, install
from monochord.core.sites import Site, SiteError, resolve


class Reducer(Protocol):
    """A running statistic: `update(x)` with rows (n, d), then `result()`."""

    def update(self, x: Tensor) -> Any: ...
    def result(self) -> Any: ...


def capture(
    model: nn.Module,
    pattern: str | Iterable[str],
    *,
    reduce: Reducer | None = None,
    every: bool = False,
    keep_graph: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    roles: dict[str, Tensor] | None = None,
    blocks: str | None = None,
) -> Capture:
    """Read the sites that `pattern` names while the block runs; the result may be entered again.

    A site holds its tensor from the latest forward, detached unless `keep_graph`; with `every` the list of
    all of them, one a call (generation steps, shared blocks). `reduce` is a statistic such as `Covariance()`,
    copied for each site and fed with rows (n, d) of real tokens. Raises `SiteError` where a pattern matches
    nothing or a weight, and on reading a site that was not reached.
    """
    base = getattr(model, "_orig_mod", model)
    found = resolve(base, pattern, blocks=blocks)
    weights = [s for s in found if s.port == "weight"]
    if weights:
        raise SiteError(f"{weights[0]} is a weight: read it from the model; capture reads what modules compute")
    return Capture(base, found, reduce, every, keep_graph, dtype, device, roles)


class Capture(Mapping[str, Any]):
    """What was read, by site name as `str(site)`: tensors, lists of them, or statistics."""

    def __init__(
        self,
        model: nn.Module,
        sites: list[Site],
        reduce: Reducer | None,
        every: bool,
        keep_graph: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        roles: dict[str, Tensor] | None,
    ) -> None:
        self.model, self.sites = model, sites
        self._reduce, self._every, self._graph = reduce, every, keep_graph
        self._to: dict[str, Any] = {k: v for k, v in (("dtype", dtype), ("device", device)) if v is not None}
        self._roles = roles
        self._follow = reduce is not None or any(needs_call(s.selector) for s in sites)
        self._names = {str(s): s for s in sites}
        self._values: dict[str, Any] = {}
        self._call: Call | None = None
        self._handles: list[Handle] = []
        plain = not (self._follow or keep_graph or self._to or every)
        # resolved once: whole outputs, kept as they are, need no more than one store each
        self._direct = [
            (model.get_submodule(s.module), _Keep(n, self._values))
            for n, s in self._names.items()
            if plain and s.port == "out" and s.rows is None and s.index is None and not s.selector
        ]
        self._careful = {n: s for n, s in self._names.items() if n not in {k.name for _, k in self._direct}}

    def __enter__(self) -> Capture:
        if self._handles:
            raise SiteError("this capture is running already: leave its block before entering it again")
        self._values.clear()
        if self._reduce is not None:
            self._values.update({n: copy.deepcopy(self._reduce) for n in self._names})
        if self._follow:
            self._call = Call(self.model, self._roles)
        try:
            self._handles = [module.register_forward_hook(keep) for module, keep in self._direct]
            for name, site in self._careful.items():
                self._handles += install(self.model, site, self._reader(name, site))
        except BaseException:
            self.__exit__()
            raise
        if "torch._dynamo" in sys.modules:  # hooks put on after compilation would be ignored
            sys.modules["torch._dynamo"].reset()
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._call is not None:
            self._call.remove()
            self._call = None

    def __getitem__(self, name: str) -> Any:
        key = name if name in self._names else f"{name}:out"
        if key not in self._names:
            raise SiteError(f"{name!r} was not asked for: this capture reads {', '.join(list(self._names)[:4])}, ...")
        if key not in self._values:
            raise SiteError(f"{key} was not reached: no forward ran in the block, or this module is not called in it")
        value = self._values[key]
        return value.result() if self._reduce is not None else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def stack(self) -> Tensor:
        """All sites in one tensor, (sites, ...), where their shapes agree."""
        return torch.stack([self[n] for n in self])

    def _reader(self, name: str, site: Site) -> Callable[[Tensor, Any], None]:
        values, graph, to, every = self._values, self._graph, self._to, self._every

        def read(value: Tensor, inputs: Any) -> None:
            if not active(site, self._call):
                return
            value = value if graph else value.detach()
            if self._reduce is not None:
                values[name].update(_rows(value, site, self._call))
                return
            value = take(value, site, self._call) if site.selector else value
            value = value.to(**to) if to else value
            if every:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value

        return read


class _Keep:
    """A hook that keeps a module's output and nothing else."""

    __slots__ = ("name", "values")

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name, self.values = name, values

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        value = output if isinstance(output, Tensor) else first_tensor(output)
        self.values[self.name] = value.detach()


def _rows(value: Tensor, site: Site, call: Call | None) -> Tensor:
    """The value as rows (n, d), padding left out."""
    if site.selector:
        return take(value, site, call).flatten(0, -2)
    mask = call.mask(site) if call is not None else None
    if (
        mask is not None
        and value.dim() >= 3
        and mask.shape[0] == value.shape[0]
        and site.port not in ("pattern", "scores")
    ):
        past = mask.shape[1] - value.shape[1]
        if past >= 0:
            value = value[mask[:, past:].bool()]
    return value.flatten(0, -2) if value.dim() > 1 else value[None]
