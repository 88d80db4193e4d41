"""Lyapunov exponents: whether a recurrence shrinks or grows small differences, and how fast.

From "Mamba State-Space Models Are Lyapunov-Stable Learners", May 31, 2024. A Mamba state decays by exp(dt A) at each
token, so its exponents are means of dt A over the tokens and never positive; `lyapunov_spectrum` measures those of any
recurrence by QR decompositions of its Jacobians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Tensor, Any], Tensor]


def mamba_exponents(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Exponents a token of every recurrent state of a Mamba or Mamba-2, by the mixer's native name.

    Closed form: the mean over tokens of dt A, of shape (batch, channels, states), for Mamba-2 (batch, heads). With an
    `attention_mask` the mean is over real tokens. Raises `ValueError` for a model without such a mixer.
    """
    steps, mask = mamba_steps(model, batch), batch.get("attention_mask")
    mixers: dict[str, Any] = {name: model.get_submodule(name) for name in steps}
    rates = {name: -mixer.A_log.detach().float().exp() for name, mixer in mixers.items()}
    means = {name: _mean(dt, mask) for name, dt in steps.items()}
    return {name: (mean[..., None] if rates[name].dim() == 2 else mean) * rates[name] for name, mean in means.items()}


def mamba_steps(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The step sizes dt of every state-space mixer, by native name: (batch, seq, channels), for Mamba-2 heads.

    Raises `ValueError` for a model without such a mixer.
    """
    mixers = {name: module for name, module in model.named_modules() if hasattr(module, "A_log")}
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no state-space mixer (a module with A_log)")
    steps: dict[str, Tensor] = {}
    handles = [_source(mixer).register_forward_hook(_Keep(steps, name, mixer)) for name, mixer in mixers.items()]
    try:
        with torch.inference_mode():
            model(**{**batch, "use_cache": False})
    finally:
        for handle in handles:
            handle.remove()
    return steps


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
