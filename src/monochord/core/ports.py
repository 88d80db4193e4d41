"""Put a function on the tensor of a site: where each port lives in a running model.

`install(model, site, act, call)` arranges for `act(value, inputs)` to see the site's tensor in every forward;
what it returns (None for "leave it") takes the tensor's place. Reading and writing are the same mechanism.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from monochord.core.attention import install_attention
from monochord.core.layers import rows_of
from monochord.core.pattern import SiteError
from monochord.core.sites import Site

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Act = Callable[[Tensor, "Inputs | None"], "Tensor | None"]


class Handle(Protocol):
    """What `install` returns: `remove()` takes the function off again."""

    def remove(self) -> None: ...


class Call:
    """What is known of the running forward of a model: its attention mask, its past length, its number.

    Kept up to date by hooks at the root (and at the encoder of an encoder-decoder, which generation calls by
    itself), which are only there when a selector asks for them.
    """

    def __init__(self, model: nn.Module, roles: dict[str, Tensor] | None = None) -> None:
        self.roles = roles or {}
        self.step = -1
        self.counts: dict[str, int] = {}
        self._past = 0
        self._root: dict[str, Any] = {}
        self._encoder: dict[str, Any] = {}
        self._names = _arguments(model)
        self._handles = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            encoder = model.get_encoder()  # type: ignore[operator]
            self._encoder_names = _arguments(encoder)
            self._handles.append(encoder.register_forward_pre_hook(self._enter_encoder, with_kwargs=True))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step += 1
        self.counts.clear()
        self._root = {**dict(zip(self._names, args, strict=False)), **kwargs}
        self._past = cache_length(self._root.get("past_key_values", self._root.get("cache_params")))

    def _enter_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._encoder = {**dict(zip(self._encoder_names, args, strict=False)), **kwargs}

    def number(self, site: Site) -> int:
        """How often the site has been reached in this forward, counted from zero."""
        count = self.counts.get(str(site), 0)
        self.counts[str(site)] = count + 1
        return count

    def past(self, site: Site) -> int:
        """Tokens in the key-value cache before this forward."""
        return 0 if site.name.startswith("encoder.") else self._past

    def mask(self, site: Site) -> Tensor | None:
        """The (batch, past + seq) mask of real tokens for the stack of the site, if the caller gave one."""
        if site.name.startswith("encoder."):
            mask = self._encoder.get("attention_mask", self._root.get("attention_mask"))
        else:
            mask = self._root.get("decoder_attention_mask" if site.name.startswith("decoder.") else "attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def cache_length(cache: Any) -> int:
    """Tokens that a key-value cache holds; a recurrent state that has begun counts as one."""
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # a cache of recurrent layers only
        return int(cache.has_previous_state())


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def install(model: nn.Module, site: Site, act: Act, *, reads: bool = False) -> list[Handle]:
    """Run `act` on the tensor of `site` in every forward of `model`; `reads` passes it the module's inputs."""
    module = model.get_submodule(site.module)
    if site.index is not None:
        return [module.register_forward_pre_hook(_Skip(site.index, act), with_kwargs=True)]
    if site.port in ("pattern", "scores") or (site.port == "heads" and _packed(model, site)):
        return install_attention(model, site, act)
    if site.port in ("in", "heads", "neurons"):
        return [module.register_forward_pre_hook(_Entering(site, act), with_kwargs=True)]
    if site.port == "state":
        return [module.register_forward_hook(_State(site, act), with_kwargs=True)]
    if site.port == "grad":
        return [module.register_forward_hook(_Gradient(act))]
    leaving = _Leaving(site, act)
    if reads and site.inlet is not None:
        inlet = model.get_submodule(site.inlet)
        entering = inlet.register_forward_pre_hook(leaving.enter, with_kwargs=True)
        return [entering, module.register_forward_hook(leaving.with_kept)]
    if reads:
        return [module.register_forward_hook(leaving, with_kwargs=True)]
    return [module.register_forward_hook(leaving.plain)]


def first_tensor(output: Any) -> Tensor:
    """The main tensor of a module's output: itself, or the first entry of a tuple or model output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return first_tensor(output[0])
    if hasattr(output, "to_tuple"):
        return first_tensor(output.to_tuple()[0])
    if isinstance(output, dict):
        return first_tensor(next(iter(output.values())))
    raise SiteError(f"a module that returns {type(output).__name__} has no tensor to read or change")


def replace_first(output: Any, value: Tensor) -> Any:
    """`output` with its main tensor replaced."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, (tuple, list)):
        return type(output)((replace_first(output[0], value), *output[1:]))
    key = next(k for k, v in output.items() if v is not None)
    output[key] = replace_first(output[key], value)
    return output


# ---------------------------------------------------------------- one hook a kind of port
# Objects and not closures: a deep copy of an attached model then carries hooks of its own.


@dataclass
class _Leaving:
    """At a module's output, or at some rows of it."""

    site: Site
    act: Act
    rows: slice | Tensor | None = None
    kept: Inputs | None = None

    def plain(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self(module, None, None, output)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At another module, whose input is the site's: keep it until the output comes."""
        self.kept = (args, kwargs)

    def with_kept(self, module: nn.Module, args: Any, output: Any) -> Any:
        args, kwargs = self.kept or ((), {})
        self.kept = None
        return self(module, args, kwargs, output)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        value = output if isinstance(output, Tensor) else first_tensor(output)
        inputs = None if args is None else (args, kwargs)
        if self.site.rows is None:
            new = self.act(value, inputs)
        else:
            if self.rows is None:
                self.rows = rows_of(value, self.site.rows)
            new = self.act(value[..., self.rows], inputs)
            if new is not None:
                whole = value.clone()
                whole[..., self.rows] = new
                new = whole
        return None if new is None else replace_first(output, new)


@dataclass
class _Entering:
    """At a module's first input, seen head by head for `:heads`."""

    site: Site
    act: Act

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args and isinstance(args[0], Tensor) else _first_keyword(kwargs)
        value = args[0] if key is None else kwargs[key]
        heads = self.site.heads if self.site.port == "heads" else None
        seen = value if heads is None else value.unflatten(-1, (heads.n_heads, heads.d_head))
        new = self.act(seen, (args, kwargs))
        if new is None:
            return None
        new = new if heads is None else new.flatten(-2)
        return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})


def _first_keyword(kwargs: dict[str, Any]) -> str:
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return key
    raise SiteError("this module was called without a tensor: its input can't be read or changed")


@dataclass
class _Gradient:
    """At the gradient of a module's output."""

    act: Act

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        value = first_tensor(output)
        if value.requires_grad:
            value.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> Tensor | None:
        return self.act(gradient, None)


@dataclass
class _State:
    """At the recurrent state after a call: second output of torch's recurrent layers, or the model's cache."""

    site: Site
    act: Act

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(module, nn.RNNBase):
            state = output[1]
            new = self.act(state[0] if isinstance(state, tuple) else state, (args, kwargs))
            if new is None:
                return None
            return output[0], (new, *state[1:]) if isinstance(state, tuple) else new
        cache = kwargs.get("cache_params", kwargs.get("past_key_values"))
        layer = getattr(module, "layer_idx", None)
        if cache is None or not hasattr(cache, "update_recurrent_state"):
            raise SiteError(f"{self.site} has no state in this call: call the model with use_cache=True")
        states = cache.layers[layer].recurrent_states  # by number since transformers 5.21, one alone before
        new = self.act(states if isinstance(states, Tensor) else states[0], (args, kwargs))
        if new is not None:
            cache.update_recurrent_state(new, layer)
        return None


@dataclass
class _Skip:
    """At the tensor that a U-Net's up block will concatenate at this skip."""

    index: int
    act: Act
    name: str = "res_hidden_states_tuple"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        skips = kwargs[self.name] if self.name in kwargs else args[1]
        new = self.act(skips[self.index], (args, kwargs))
        if new is None:
            return None
        skips = (*skips[: self.index], new, *skips[self.index + 1 :])
        return (args, {**kwargs, self.name: skips}) if self.name in kwargs else ((args[0], skips, *args[2:]), kwargs)


def _packed(model: nn.Module, site: Site) -> bool:
    """Whether the heads pass inside torch's own multi-head attention, whose out_proj is never called."""
    return isinstance(model.get_submodule(site.path), nn.MultiheadAttention)
