"""Modifications: one `nn.Module` each, put at a site by `attach`.

A modification maps the tensor at a site to another of the same shape. One that changes a weight also has
`delta()`, the change it adds, and where it can `bypass`, what that change adds to the layer's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.blocks import kind, linear_like, owned
from monochord.core.entries import Dense, Entry
from monochord.core.layers import Layer
from monochord.core.sites import Site, SiteError
from monochord.core.switch import Switch


class Modification(nn.Module):
    """Something put at a site: `forward(value) -> value`, same shape.

    `reads` says what else it is given: "value" nothing, "input" the module's first input as a second
    argument, "call" the module's positional and keyword arguments.
    """

    reads: str = "value"
    neutral: bool = True  # whether it leaves the model's output as it is until it is trained

    def bind(self, site: Site, model: nn.Module) -> Modification:
        """The modification to use at `site` of `model`: itself, unless it depends on where it is put."""
        return self

    def install(self, site: Site, model: nn.Module, switch: Switch, number: int) -> list[Any] | None:
        """Put hooks of its own on `model` and return their handles; None for one that is called with the value.

        They look at `switch` in every call, and add `number` to `switch.reached` where they act.
        """
        return None

    def forward(self, value: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has to define forward(value)")

    def fold(self, site: Site, model: nn.Module) -> dict[str, Tensor] | None:
        """New values of the model's own tensors that do the same, or None where there are none."""
        return None

    def saved(self) -> dict[str, Tensor]:
        """The tensors that make up what was tuned, by name."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of `saved()`, of the same shapes."""
        for name, value in self.saved().items():
            value.copy_(tensors[name])


class Apply(Modification):
    """Any function of the value: `Apply(torch.tanh)`. A plain function given to `attach` becomes one."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value)


class Add(Modification):
    """`value + scale * vector`; the vector's shape broadcasts against the value, e.g. (d_model,)."""

    def __init__(self, vector: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector.detach().clone(), requires_grad=False)
        self.scale = scale

    def forward(self, value: Tensor) -> Tensor:
        return torch.add(value, self.vector.to(value), alpha=self.scale)


class Scale(Modification):
    """`gain * value`, with a number or one gain a unit, shape (units,) or one that broadcasts.

    At the output or input of a dense layer it folds into that layer's weight.
    """

    def __init__(self, gain: Tensor | float, trainable: bool = False) -> None:
        super().__init__()
        gain = torch.as_tensor(gain, dtype=torch.get_default_dtype()) if not isinstance(gain, Tensor) else gain
        self.gain = nn.Parameter(gain.detach().clone(), requires_grad=trainable)

    def forward(self, value: Tensor) -> Tensor:
        return value * self.gain.to(value.dtype)

    def fold(self, site: Site, model: nn.Module) -> dict[str, Tensor] | None:
        module = model.get_submodule(site.module)
        dense = site.port in ("out", "in", "neurons", "heads") and linear_like(module) and self.gain.dim() <= 1
        if not dense or site.selector:
            return None
        weight, bias = owned(module, "weight").detach(), getattr(module, "bias", None)
        matrix = weight.t() if kind(module) == "Conv1D" else weight
        gain, prefix = self.gain.detach().to(weight), f"{site.module}." if site.module else ""
        if site.port != "out":
            changed = matrix * gain
            return {f"{prefix}weight": changed.t() if kind(module) == "Conv1D" else changed}
        rows = torch.ones(matrix.shape[0], dtype=gain.dtype, device=gain.device)
        rows[list(site.rows) if site.rows else slice(None)] = gain
        changed = matrix * rows[:, None]
        folded = {f"{prefix}weight": changed.t() if kind(module) == "Conv1D" else changed}
        return folded if not isinstance(bias, Tensor) else {**folded, f"{prefix}bias": bias.detach() * rows}


class Clamp(Modification):
    """`value` limited to [low, high]; a number or a tensor that broadcasts, None for no limit."""

    def __init__(self, low: float | Tensor | None = None, high: float | Tensor | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, value: Tensor) -> Tensor:
        return torch.clamp(value, self.low, self.high)  # type: ignore[arg-type]


class Ablate(Modification):
    """Replace the value by zero, or by `to`, for instance its mean over a data set."""

    def __init__(self, to: Tensor | float = 0.0) -> None:
        super().__init__()
        self.to_value = to

    def forward(self, value: Tensor) -> Tensor:
        if isinstance(self.to_value, Tensor):
            return self.to_value.to(value).expand_as(value)
        return torch.full_like(value, self.to_value)


class Patch(Modification):
    """Replace the value by one from elsewhere.

    `Patch(tensor)` puts a value captured in another run there; `Patch(from_model=base)` runs the same module
    of another model of the same architecture on *this* model's state.
    """

    reads = "call"

    def __init__(self, value: Tensor | None = None, *, from_model: nn.Module | None = None) -> None:
        super().__init__()
        if (value is None) == (from_model is None):
            raise ValueError("Patch takes either a captured value or from_model=, not both")
        self.value = value
        self._source = (from_model,)  # in a tuple: the other model is no part of this one
        self._cache: tuple[Any, Any] | None = None

    def bind(self, site: Site, model: nn.Module) -> Modification:
        (other,) = self._source
        if other is None:
            return self
        if site.port != "out":
            raise SiteError(f"Patch(from_model=...) works at module outputs, not at {site}")
        return Patch(from_model=other.get_submodule(site.module))

    def forward(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.value is None:
            args, kwargs = tuple(map(self._own, args)), {k: self._own(v) for k, v in kwargs.items()}
            output = self._source[0](*args, **kwargs)  # type: ignore[misc]
            return output if isinstance(output, Tensor) else output[0]
        if self.value.shape != value.shape:
            raise SiteError(
                f"Patch holds {tuple(self.value.shape)} but the site has {tuple(value.shape)}: "
                "run both prompts at the same length or select tokens"
            )
        return self.value.to(value)

    def _own(self, argument: Any) -> Any:
        """The other model's keys and values go to a cache of their own, begun when the caller's begins."""
        if not hasattr(argument, "get_seq_length") or not hasattr(argument, "update"):
            return argument
        if self._cache is None or self._cache[0] is not argument:
            self._cache = (argument, type(argument)())
        return self._cache[1]


class Project(Modification):
    """Keep only (`keep=True`) or remove the part of the value in the span of `basis`, shape (d, k) orthonormal."""

    def __init__(self, basis: Tensor, keep: bool = False) -> None:
        super().__init__()
        self.register_buffer("basis", torch.linalg.qr(basis.detach().reshape(basis.shape[0], -1).double())[0].to(basis))
        self.keep = keep
        self.basis: Tensor

    def forward(self, value: Tensor) -> Tensor:
        basis = self.basis.to(value.dtype)
        inside = (value @ basis) @ basis.t()
        return inside if self.keep else value - inside


class Bottleneck(Modification):
    """A small trained network beside the value: `value + scale * up(activation(down(source)))`.

    `source` is the value itself (sequential) or, with `parallel`, the module's input. Zero until trained.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
        scale: float = 1.0,
        parallel: bool = False,
        generator: Generator | None = None,
        inputs: int | None = None,
    ) -> None:
        super().__init__()
        inputs = inputs or width
        self.down = nn.Parameter(uniform((bottleneck, inputs), inputs, generator))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(width, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.activation, self.scale = activation, scale
        self.reads = "input" if parallel else "value"

    def forward(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        source = value if source is None else source
        kind = source.dtype
        hidden = self.activation(F.linear(source, self.down.to(kind), self.down_bias.to(kind)))
        return torch.add(value, F.linear(hidden, self.up.to(kind), self.up_bias.to(kind)), alpha=self.scale)


def uniform(shape: tuple[int, ...], fan_in: int, generator: Generator | None = None) -> Tensor:
    """Numbers within 1 / sqrt(fan_in) of zero: how a dense layer of so many inputs starts."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


# ---------------------------------------------------------------- changes of a weight


class WeightModification(Modification):
    """A change of a weight, in the shape (outputs, inputs, ...) in which its layer applies it.

    `delta()` is the change; `gain()` an optional factor a row that multiplies the changed weight (not the
    bias). One that can says what its delta adds to the layer's output in `bypass(x, layer)`, without
    building it; otherwise the weight itself is recomputed on each use.
    """

    bypasses: bool = False

    def delta(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has to define delta()")

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        """What `delta()` adds to the output for the input `x`; None for nothing."""
        return layer.apply(x, self.delta())

    def gain(self) -> Tensor | None:
        """Factor a row of the changed weight, shape (outputs,), or None."""
        return None

    def entry(self, weight: Tensor) -> Entry:
        """The change of `weight` in its cheapest form, for keeping."""
        return Dense(self(weight) - weight)

    def forward(self, weight: Tensor) -> Tensor:
        changed = weight + self.delta().to(weight.dtype)
        gain = self.gain()
        return changed if gain is None else changed * gain.to(weight.dtype).reshape(-1, *(1,) * (weight.dim() - 1))
