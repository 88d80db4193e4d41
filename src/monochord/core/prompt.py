"""Prompt tokens: trained vectors inserted beside the embedded input, with everything that depends on length.

The vectors join the sequence where the embedding returns and leave it where the stack of blocks returns, so
labels, logits and whatever follows keep their lengths. In between, attention mask, positions and a key-value
cache are extended to match. They stand before the tokens of a causal model and after those of an encoder, whose
first position and absolute positions thus stay where they were.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.blocks import kind
from monochord.core.modification import Modification
from monochord.core.pattern import SiteError
from monochord.core.ports import Handle, cache_length, first_tensor, replace_first
from monochord.core.sites import Index, Site
from monochord.core.switch import Switch


class Prompt(Modification):
    """`tokens`, shape (length, d_model), inserted at `embed:out`; `front` says on which side (None: by model)."""

    neutral = False

    def __init__(self, tokens: Tensor, front: bool | None = None) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.detach().clone())
        self.front = front

    def forward(self, value: Tensor) -> Tensor:
        tokens = self.tokens.to(value.dtype).expand(value.shape[0], -1, -1)
        return torch.cat([tokens, value] if self.front else [value, tokens], 1)


def install_prompt(model: nn.Module, site: Site, prompt: Prompt, switch: Switch, number: int) -> list[Handle]:
    """Insert the prompt in every forward of the stack that `site`, an embedding, feeds."""
    stack, norm = stack_of(model, site)
    if prompt.front is None:
        prompt.front = causal(stack)
    embedding = model.get_submodule(site.module)
    insertion = _Insertion(prompt, switch, number, stack, embedding)
    handles: list[Handle] = [
        stack.register_forward_pre_hook(insertion.enter, with_kwargs=True),
        embedding.register_forward_hook(insertion.embed),
        stack.register_forward_hook(insertion.leave),
    ]
    if norm is not None and not isinstance(embedding, nn.Embedding):
        handles.append(norm.register_forward_hook(insertion.cut))  # what pools or folds patches comes after it
    return handles


def causal(module: nn.Module) -> bool:
    """Whether the tokens of a stack look only backwards."""
    backwards = any(getattr(m, "is_causal", False) is True or hasattr(m, "A_log") for m in module.modules())
    return backwards or "CLIPText" in kind(module)  # which doesn't say so of itself


def stack_of(model: nn.Module, site: Site) -> tuple[nn.Module, nn.Module | None]:
    """The module that holds both the embedding and the blocks that it feeds, and its final norm."""
    parts = Index(model).anatomy.parts
    prefix = site.name.rpartition("embed")[0]
    block, norm = parts.get(f"{prefix}blocks.0"), parts.get(f"{prefix}final_norm")
    sequence = {f"{prefix}blocks.0.attn", f"{prefix}blocks.0.ssm"} & parts.keys()
    picture = isinstance(model.get_submodule(site.module), nn.Conv2d)
    if block is None or site.port != "out" or not site.name.endswith("embed") or not sequence or picture:
        raise SiteError(f"{site} feeds no sequence of tokens: prompt tokens go to the embedding of a transformer")
    common = []
    for a, b in zip(site.module.split("."), block.path.split("."), strict=False):
        if a != b:
            break
        common.append(a)
    stack = model.get_submodule(".".join(common))
    return stack, None if norm is None else model.get_submodule(norm.path)


class _Insertion:
    """One forward of the stack: lengthen what comes in, insert once, shorten what goes out."""

    def __init__(self, prompt: Prompt, switch: Switch, number: int, stack: nn.Module, embedding: nn.Module) -> None:
        self.prompt, self.switch, self.number = prompt, switch, number
        self.names = list(inspect.signature(stack.forward).parameters)
        self.embedding, self.plain = embedding, isinstance(embedding, nn.Embedding)
        self.waiting = self.inserted = False

    def enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.waiting = self.inserted = False
        if self.switch.strength is None:
            return None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        cache = given.get("past_key_values", given.get("cache_params"))
        self.waiting = cache_length(cache) == 0
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2):
            raise SiteError("prompt tokens need a (batch, seq) attention mask: use the default cache, not a static one")
        if isinstance(mask, Tensor):
            given["attention_mask"] = self._beside(mask, torch.ones_like(mask[:, :1]))
        if isinstance(positions, Tensor) and self.prompt.front:
            length = len(self.prompt.tokens)
            own = torch.arange(length, device=positions.device).expand(*positions.shape[:-1], -1)
            given["position_ids"] = torch.cat([own, positions + length], -1) if self.waiting else positions + length
        if self.waiting and self.plain and {"input_ids", "inputs_embeds"} <= set(self.names):
            self.waiting = False  # insert here and not in the embedding's hook: some stacks take shapes from the ids
            ids = given.pop("input_ids", None)
            embeds = given.get("inputs_embeds")
            given["inputs_embeds"] = self._insert(self.embedding(ids) if embeds is None else embeds)
        return (), given

    def embed(self, module: nn.Module, args: Any, output: Any) -> Any:
        return replace_first(output, self._insert(first_tensor(output))) if self.waiting else None

    def cut(self, norm: nn.Module, args: Any, output: Any) -> Any:
        if not self.inserted or first_tensor(output).dim() != 3:
            return None
        self.inserted = False
        return replace_first(output, self._cut(first_tensor(output)))

    def leave(self, stack: nn.Module, args: Any, output: Any) -> Any:
        if not self.inserted:
            return None
        output = replace_first(output, self._cut(first_tensor(output)))
        states = getattr(output, "hidden_states", None)
        if states is not None and "hidden_states" in output:
            output["hidden_states"] = tuple(self._cut(s) for s in states)
        return output

    def _insert(self, value: Tensor) -> Tensor:
        self.waiting, self.inserted = False, True
        self.switch.reached.add(self.number)
        return self.prompt(value)

    def _beside(self, mask: Tensor, one: Tensor) -> Tensor:
        ones = one.expand(-1, len(self.prompt.tokens))
        return torch.cat([ones, mask] if self.prompt.front else [mask, ones], 1)

    def _cut(self, value: Tensor) -> Tensor:
        length = len(self.prompt.tokens)
        return value[:, length:] if self.prompt.front else value[:, :-length]
