"""A model as a function of its weights: run it with others, differentiate it along them, linearise it.

    linear = linearize(model)                # f(x; w0) + J(x) (w - w0), trained in w - w0
    mc.fit(linear, data, objective); linear.as_delta().apply(model)

Everything is evaluated without dropout and with the statistics of norms standing still. Fused attention
and fused experts have no forward-mode derivative, so directional derivatives run them by their formulas; the model
is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from monochord.core.delta import Delta
from monochord.core.entries import Dense
from monochord.core.forward import evaluating, logits_of, run
from monochord.core.forward_mode import written_out
from monochord.core.sources import nearest
from monochord.core.storage import base_name, fingerprint

Batch = Mapping[str, Any] | Tensor
Parameters = Mapping[str, Tensor]


def call(model: nn.Module, parameters: Parameters, batch: Batch) -> Any:
    """The output of `model` for `batch` (named tensors, or one tensor) with these weights in place of its own.

    Names are those of `named_parameters()` and buffers; those left out keep their values. Labels are not passed on.
    Raises `ValueError` for a name or a shape that the model has not.
    """
    given = {f"model.{name}": value for name, value in _checked(model, parameters).items()}
    return functional_call(_Runner(model), given, (_named(batch),))


def jvp(model: nn.Module, batch: Batch, tangents: Parameters, *, at: Parameters | None = None) -> Tensor:
    """How the logits (or first output) change along `tangents`: the Jacobian times a change of weights.

    One forward pass in forward mode. Parameters without a tangent stand still. `at` are the weights to
    differentiate at, by default the model's own.
    """
    tangents = _checked(model, tangents, buffers=False)
    point = _point(model, at, tangents)
    with evaluating(model), written_out(model):
        return torch.func.jvp(lambda p: logits_of(call(model, p, batch)), (point,), (tangents,))[1]


def vjp(model: nn.Module, batch: Batch, cotangent: Tensor, *, at: Parameters | None = None) -> dict[str, Tensor]:
    """The transposed Jacobian times `cotangent`, which has the shape of the logits (or first output).

    The gradient of their inner product, by name, for every parameter that requires one (all of them where none
    does). No `.grad` is touched.
    """
    point = {name: value.requires_grad_() for name, value in _point(model, at, _trained(model)).items()}
    with evaluating(model), torch.enable_grad():
        output = logits_of(call(model, point, batch))
        if output.shape != cotangent.shape:
            raise ValueError(f"the cotangent is {tuple(cotangent.shape)}, the output {tuple(output.shape)}")
        return _gradients(output, point, cotangent)


def ntk(
    model: nn.Module,
    batch_a: Batch,
    batch_b: Batch | None = None,
    *,
    at: Parameters | None = None,
    outputs: Callable[[Any], Tensor] = logits_of,
    trace: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """The empirical neural tangent kernel J_a J_b^T, shape (n_a * units, n_b * units).

    One batch with itself by default. A row is one unit of what `outputs` takes from the model's output for one
    example: all logits of a language model are many, so choose (`lambda o: o.logits[:, -1]`). With `trace` the kernel
    is (n_a, n_b), the mean over units. `chunk` is how many rows of each Jacobian are held at a time (default: 256 MB).
    """
    point = {name: value.requires_grad_() for name, value in _point(model, at, _trained(model)).items()}
    chunk = max(2**26 // max(sum(p.numel() for p in point.values()), 1), 1) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    with evaluating(model), torch.enable_grad():
        a = _Jacobian(model, point, batch_a, outputs)
        b = a if batch_b is None else _Jacobian(model, point, batch_b, outputs)
        kernel = torch.zeros(a.rows, b.rows, dtype=a.first.dtype, device=a.first.device)
        for i, upper in a.blocks(chunk):
            rows = slice(i, i + len(upper))
            if a is b:
                kernel[rows, rows] = upper @ upper.T
            for j, lower in b.blocks(chunk, start=rows.stop if a is b else 0):
                columns = slice(j, j + len(lower))
                kernel[rows, columns] = upper @ lower.T
                if a is b:
                    kernel[columns, rows] = kernel[rows, columns].T
    if not trace:
        return kernel
    return kernel.reshape(a.examples, a.units, b.examples, b.units).diagonal(dim1=1, dim2=3).mean(-1)


def linearize(model: nn.Module, at: Parameters | nn.Module | None = None) -> LinearizedModel:
    """The first-order Taylor expansion of `model` in its weights, around `at` (a state or another model; by default
    the weights it has now)."""
    return LinearizedModel(model, at)


class LinearizedModel(nn.Module):
    """`f(x; w0) + J(x) delta`: affine in `delta`, equal to the model while that is zero.

    `delta` holds a trained change of every parameter that requires a gradient (of all, where none does), under the
    names of the originals. `base` is a frozen copy of the model, always in evaluation mode: later training of the
    model does not move the expansion. A forward is one pass in forward mode, about twice the work of the model's
    own, and returns what the model returns, its tensors linearised; caches and the model's own loss, which is not
    linear, are left out, so train with an objective.
    """

    def __init__(self, model: nn.Module, at: Parameters | nn.Module | None = None) -> None:
        super().__init__()
        names = _trained(model)
        self.base = copy.deepcopy(getattr(model, "_orig_mod", model)).eval().requires_grad_(False)
        self.config = getattr(model, "config", None)
        point = dict(at.named_parameters()) if isinstance(at, nn.Module) else at
        self.base.load_state_dict(_checked(self.base, point or {}), strict=False)
        self.delta = _Named({n: torch.zeros_like(p) for n, p in self.base.named_parameters() if n in names})

    def forward(self, *args: Any, **inputs: Any) -> Any:
        deltas = dict(self.delta.named_parameters())
        point = {name: value for name, value in self.base.named_parameters() if name in deltas}
        form: list[Any] = []

        def run_at(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
            if args:
                output = functional_call(self.base, parameters, args, inputs)
            else:
                output = call(self.base, parameters, inputs)
            leaves, spec = pytree.tree_flatten(_differentiable(output))
            form.append(spec)
            return tuple(leaves)

        with written_out(self.base):
            values, changes = torch.func.jvp(run_at, (point,), (deltas,))[:2]
        return pytree.tree_unflatten([v + c for v, c in zip(values, changes, strict=True)], form[0])

    def train(self, mode: bool = True) -> LinearizedModel:
        """Nothing to switch: the base stays in evaluation mode, or the expansion would be of another function."""
        super().train(mode)
        self.base.eval()
        return self

    def as_delta(self) -> Delta:
        """The trained change of the weights, to apply to the model itself, add, negate or save."""
        found = {name: Dense(p.detach().clone()) for name, p in self.delta.named_parameters()}
        if attached := [name for name in found if base_name(name) != name]:
            raise ValueError(f"{attached[0]} belongs to a tuner, not to the model's own weights: merge it first")
        return Delta({n: e for n, e in found.items() if torch.count_nonzero(e.dense())}, fingerprint(self.base))

    def set_delta(self, delta: Delta | Parameters) -> None:
        """Take over a change of weights, such as one that came from training the model itself; others become zero."""
        given = {n: e if isinstance(e, Tensor) else e.dense() for n, e in delta.items()}
        own = dict(self.delta.named_parameters())
        _compare(own, given, "the expansion")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given.get(name, torch.zeros_like(parameter)))


class _Named(nn.Module):
    """Parameters under dotted names, as a tree of modules."""

    def __init__(self, values: Parameters) -> None:
        super().__init__()
        for name, value in values.items():
            *owners, last = name.split(".")
            node: nn.Module = self
            for owner in owners:
                if owner not in node._modules:
                    node.add_module(owner, _Named({}))
                node = cast(nn.Module, node._modules[owner])
            node.register_parameter(last, nn.Parameter(value))


class _Runner(nn.Module):
    """A model whose forward takes a batch, so that weights can be exchanged around the whole call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return run(self.model, batch)


class _Jacobian:
    """The rows of a Jacobian, one a unit of output and example, computed block by block."""

    def __init__(
        self, model: nn.Module, point: dict[str, Tensor], batch: Batch, outputs: Callable[[Any], Tensor]
    ) -> None:
        self.model, self.point, self.batch, self.outputs = model, point, _named(batch), outputs
        self.examples = next((len(v) for v in self.batch.values() if isinstance(v, Tensor) and v.dim()), 0)
        if not self.examples:
            raise ValueError(f"the batch has no tensor with examples, only {', '.join(self.batch) or 'nothing'}")
        with torch.no_grad():
            self.first = self._output(0)
        self.units = self.first.numel()
        self.rows = self.examples * self.units

    def blocks(self, size: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Number of the first row, and up to `size` rows, (rows, parameters), from row `start` on."""
        held: list[Tensor] = []
        for example in range(start // self.units, self.examples):
            output = self._output(example)
            for unit in range(max(start - example * self.units, 0), self.units):
                held.append(torch.cat([g.flatten() for g in _gradients(output[unit], self.point).values()]))
                if len(held) == size:
                    yield example * self.units + unit + 1 - size, torch.stack(held)
                    held = []
        if held:
            yield self.rows - len(held), torch.stack(held)

    def _output(self, example: int) -> Tensor:
        """All units of one example."""
        whole, one = self.examples, slice(example, example + 1)
        split = {n: isinstance(v, Tensor) and v.dim() > 0 and len(v) == whole for n, v in self.batch.items()}
        batch = {name: value[one] if split[name] else value for name, value in self.batch.items()}
        return self.outputs(call(self.model, self.point, batch)).flatten()


def _gradients(output: Tensor, point: dict[str, Tensor], cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """The gradient by name, zero where the output does not depend on a parameter. The graph is kept."""
    found = torch.autograd.grad(output, list(point.values()), cotangent, retain_graph=True, materialize_grads=True)
    return dict(zip(point, found, strict=True))


def _differentiable(output: Any) -> Any:
    """The entries of an output that are floating-point tensors through and through."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        kept = {name: value for name, value in output.items() if _floating(value)}
        return kept if type(output) is dict else type(output)(**kept)
    return tuple(value for value in output if _floating(value))


def _floating(value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return all(isinstance(part, Tensor) and part.is_floating_point() for part in parts)


def _named(batch: Batch) -> Mapping[str, Any]:
    return {"input": batch} if isinstance(batch, Tensor) else batch


def _trained(model: nn.Module) -> list[str]:
    """The names of the parameters that require a gradient; of all where none does."""
    named = dict(model.named_parameters())
    return [name for name, p in named.items() if p.requires_grad] or list(named)


def _point(model: nn.Module, at: Parameters | None, names: Iterable[str]) -> dict[str, Tensor]:
    """Detached weights under `names`: those of `at` where it has them, else the model's own."""
    own = dict(model.named_parameters(remove_duplicate=False))
    given = _checked(model, at or {})
    return {name: given.get(name, own[name]).detach() for name in names}


def _checked(model: nn.Module, values: Parameters, buffers: bool = True) -> dict[str, Tensor]:
    own = dict(model.named_parameters(remove_duplicate=False)) | (dict(model.named_buffers()) if buffers else {})
    _compare(own, values, type(model).__name__)
    return dict(values)


def _compare(own: Parameters, given: Parameters, owner: str) -> None:
    """Raise `ValueError` for a name or a shape that `own` has not."""
    for name, value in given.items():
        if name not in own:
            raise ValueError(f"{owner} has no parameter {name!r}{nearest(name, own)}")
        if own[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(own[name].shape)} in {owner}, {tuple(value.shape)} was given")
