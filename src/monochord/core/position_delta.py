"""A change of the input embeddings by position: the same for every text, whatever token stands there.

Positions count real tokens: padding is left alone on either side, a cached token keeps its place, and prompt tokens
don't count.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Generator, Tensor, nn

from monochord.core.modification import Modification, uniform
from monochord.core.ports import Handle, cache_length, first_tensor, replace_first
from monochord.core.prompt import Prompt, stack_of
from monochord.core.sites import Site
from monochord.core.switch import Switch


class PositionDelta(Modification):
    """Row t of `scale * left @ right`, (positions, rank) and (rank, d_model), is added to the embedding of token t.

    Zero until trained; tokens after the last position are left as they are.
    """

    def __init__(
        self, positions: int, rank: int, d_model: int, scale: float = 1.0, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(uniform((positions, rank), rank, generator))
        self.right = nn.Parameter(torch.zeros(rank, d_model))
        self.scale = scale

    def table(self) -> Tensor:
        """The changes, (positions, d_model)."""
        return self.scale * self.left @ self.right

    def copied(self) -> PositionDelta:
        """The same with parameters of its own."""
        made = PositionDelta(len(self.left), self.right.shape[0], self.right.shape[1], self.scale)
        with torch.no_grad():
            made.left.copy_(self.left)
            made.right.copy_(self.right)
        return made

    def at(self, positions: Tensor) -> Tensor:
        """The changes at positions (batch, seq), those below zero and past the end being none; (batch, seq, d)."""
        known = (positions >= 0) & (positions < len(self.left))
        left = self.left[torch.where(known, positions, 0)] * known[..., None]
        return self.scale * left @ self.right

    def install(self, site: Site, model: nn.Module, switch: Switch, number: int) -> list[Any]:
        stack, _ = stack_of(model, site)
        watch = _Watch(self, switch, number, stack, model)
        embedding = model.get_submodule(site.module)
        handles: list[Handle] = [
            # before a prompt lengthens the mask and calls the embedding
            stack.register_forward_pre_hook(watch.enter, with_kwargs=True, prepend=True),
            embedding.register_forward_hook(watch.embed, prepend=True),
            stack.register_forward_hook(watch.leave, always_call=True),
        ]
        return handles


class _Watch:
    """Knows the positions of the tokens of the running forward of the stack."""

    def __init__(self, delta: PositionDelta, switch: Switch, number: int, stack: nn.Module, model: nn.Module) -> None:
        self.delta, self.switch, self.number, self.model = delta, switch, number, model
        self.names = list(inspect.signature(stack.forward).parameters)
        self.given: dict[str, Any] | None = None

    def enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.given = None
        if self.switch.strength is None:
            return None
        self.given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        embeds = self.given.get("inputs_embeds")
        if not isinstance(embeds, Tensor):
            return None
        given = {**self.given, "inputs_embeds": self._changed(embeds)}
        self.given = None
        return (), given

    def embed(self, module: nn.Module, args: Any, output: Any) -> Any:
        return None if self.given is None else replace_first(output, self._changed(first_tensor(output)))

    def leave(self, stack: nn.Module, args: Any, output: Any) -> None:
        self.given = None

    def _changed(self, value: Tensor) -> Tensor:
        self.switch.reached.add(self.number)
        change = self.delta.at(self._positions(value)).to(value.dtype)
        return self.switch.blend(value, value + change)

    def _positions(self, value: Tensor) -> Tensor:
        """(batch, seq), -1 on padding."""
        assert self.given is not None
        length, mask = value.shape[1], self.given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            real = mask.to(value.device) != 0
            return torch.where(real, real.cumsum(-1) - 1, -1)[:, -length:]
        past = cache_length(self.given.get("past_key_values", self.given.get("cache_params")))
        if past:
            prompts = (m for m in self.model.modules() if isinstance(m, Prompt))
            past -= sum(len(prompt.tokens) for prompt in prompts if prompt.front)
        return torch.arange(past, past + length, device=value.device).expand(value.shape[0], -1)
