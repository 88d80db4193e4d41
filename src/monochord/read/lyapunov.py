"""Lyapunov exponents: whether a recurrence shrinks or grows small differences, and how fast.

From "Mamba State-Space Models Are Lyapunov-Stable Learners", May 31, 2024. A Mamba state decays by exp(dt A) at each
token, so its exponents are means of dt A over the tokens and never positive; `lyapunov_spectrum` measures those of any
recurrence by QR decompositions of its Jacobians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.read.precision import rounding_drift

Step = Callable[[Tensor, Any], Tensor]


def mamba_exponents(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Exponents a token of every recurrent state of a Mamba or Mamba-2, by the mixer's native name.

    Closed form: the mean over tokens of dt A, of shape (batch, channels, states), for Mamba-2 (batch, heads). With an
    `attention_mask` the mean is over real tokens. Raises `ValueError` for a model without such a mixer.
    """
    means = {name: _mean(dt, batch.get("attention_mask")) for name, dt in mamba_steps(model, batch).items()}
    return {name: _times_rate(model, name, mean) for name, mean in means.items()}


def mamba_decays(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The log of what each token leaves of a recurrent state, dt A, by the mixer's native name.

    Of shape (batch, seq, channels, states), for Mamba-2 (batch, seq, heads). Raises `ValueError` for a model without
    such a mixer.
    """
    return {name: _times_rate(model, name, dt) for name, dt in mamba_steps(model, batch).items()}


def mamba_steps(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The step sizes dt of every state-space mixer, by native name: (batch, seq, channels), for Mamba-2 heads.

    Raises `ValueError` for a model without such a mixer.
    """
    mixers, steps = _mixers(model), dict[str, Tensor]()
    handles = [_source(mixer).register_forward_hook(_Keep(steps, name, mixer)) for name, mixer in mixers.items()]
    try:
        with torch.inference_mode():
            model(**{**batch, "use_cache": False})
    finally:
        for handle in handles:
            handle.remove()
    return steps


@torch.no_grad()
def mamba_states(
    model: nn.Module, input_ids: Tensor, change: Callable[[str, Tensor, int], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The recurrent states of a Mamba or Mamba-2 after each token of `input_ids` (batch, seq), in turn.

    By the mixer's native name: (batch, channels, states), for Mamba-2 (batch, heads, head_dim, states). Tokens are read
    one by one. `change(name, state, token)` gives the state to go on from, which makes a twin: pushed, or rounded.
    Raises `ValueError` for a model without such a mixer.
    """
    mixers: dict[str, Any] = _mixers(model)
    cache: Any = None
    for token in range(input_ids.shape[1]):
        cache = model(input_ids=input_ids[:, token : token + 1], cache_params=cache, use_cache=True).cache_params
        states = {name: cache.layers[mixer.layer_idx].recurrent_states for name, mixer in mixers.items()}
        states = {name: next(iter(held.values())) if isinstance(held, dict) else held for name, held in states.items()}
        if change is not None:
            for name, state in states.items():
                state.copy_(change(name, state, token))
        yield {name: state.clone() for name, state in states.items()}  # the next token is written over them


def mamba_drift(model: nn.Module, input_ids: Tensor, bits: int) -> dict[str, Tensor]:
    """How far the recurrent states get from themselves when they are rounded to `bits` bits of mantissa at each token.

    For `input_ids` (batch, seq) by the mixer's native name: (seq, batch), as `rounding_drift` measures it. Each layer's
    recurrence runs alone, on the decays and inputs it has in full precision. Raises `ValueError` for a model without
    such a mixer.
    """
    states, found = list(mamba_states(model, input_ids)), {}
    for name, logs in mamba_decays(model, {"input_ids": input_ids}).items():
        decays = logs.exp().transpose(0, 1)
        decays = decays[..., None, None] if decays.dim() == 3 else decays
        exact = torch.stack([state[name] for state in states])
        before = torch.cat([torch.zeros_like(exact[:1]), exact[:-1]])
        given = zip(decays, exact - decays * before, strict=True)
        found[name] = rounding_drift(lambda state, step: step[0] * state + step[1], before[0], given, bits)
    return found


def lyapunov_spectrum(step: Step, state: Tensor, inputs: Any, *, washout: int = 0) -> Tensor:
    """All exponents (n,), largest first, of `state = step(state, input)` for the inputs in turn, in nats a step.

    `state` is (n,). The first `washout` steps move the state and are not measured.
    """
    frame = torch.eye(state.numel(), dtype=state.dtype)
    total, count = torch.zeros_like(state), 0
    for number, given in enumerate(inputs):
        if number >= washout:
            jacobian = torch.func.jacrev(lambda s, given=given: step(s, given))(state)
            frame, upper = torch.linalg.qr(jacobian @ frame)
            total += upper.diagonal().abs().clamp_min(torch.finfo(state.dtype).tiny).log()
            count += 1
        state = step(state, given)
    if not count:
        raise ValueError(f"all {washout} steps are washout: give more inputs")
    return (total / count).sort(descending=True).values


def divergence(step: Step, state: Tensor, inputs: Any, eps: float = 1e-6, seed: int = 0) -> Tensor:
    """log of the distance (steps + 1,) between a trajectory and one that starts `eps` away in a random direction."""
    offset = torch.randn(state.shape, dtype=state.dtype, generator=torch.Generator().manual_seed(seed))
    other = state + eps * offset / offset.norm()
    distances = [(other - state).norm()]
    for given in inputs:
        state, other = step(state, given), step(other, given)
        distances.append((other - state).norm())
    return torch.stack(distances).clamp_min(torch.finfo(state.dtype).tiny).log()


def _mixers(model: nn.Module) -> dict[str, nn.Module]:
    mixers = {name: module for name, module in model.named_modules() if hasattr(module, "A_log")}
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no state-space mixer (a module with A_log)")
    return mixers


def _times_rate(model: nn.Module, name: str, dt: Tensor) -> Tensor:
    """dt A of step sizes (..., channels or heads)."""
    mixer: Any = model.get_submodule(name)
    rate: Tensor = -mixer.A_log.detach().float().exp()
    return (dt[..., None] if rate.dim() == 2 else dt) * rate


def _source(mixer: nn.Module) -> nn.Module:
    """The projection from whose output the step sizes come."""
    found: nn.Module = mixer.x_proj if hasattr(mixer, "x_proj") else mixer.in_proj  # type: ignore[assignment]
    return found


class _Keep:
    """Keeps a mixer's step sizes (batch, seq, channels or heads), which it computes without calling a layer."""

    def __init__(self, steps: dict[str, Tensor], name: str, mixer: nn.Module) -> None:
        self.steps, self.name, self.mixer = steps, name, mixer

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        mixer: Any = self.mixer
        if hasattr(mixer, "x_proj"):
            low = output[..., : mixer.dt_proj.in_features].float()
            bias = None if mixer.dt_proj.bias is None else mixer.dt_proj.bias.float()
            self.steps[self.name] = F.softplus(F.linear(low, mixer.dt_proj.weight.float(), bias))
            return
        dt = F.softplus(output[..., -len(mixer.A_log) :].float() + mixer.dt_bias.float())
        self.steps[self.name] = dt.clamp(*getattr(mixer, "time_step_limit", (0.0, float("inf"))))


def _mean(dt: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over real tokens of (batch, seq, channels)."""
    if mask is None:
        return dt.mean(1)
    kept = mask.unsqueeze(-1).to(dt)
    return (dt * kept).sum(1) / kept.sum(1)
