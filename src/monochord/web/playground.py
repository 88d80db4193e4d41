"""A language model to play with: steer it by traits, switch heads off, see what it writes and thinks."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

MODELS = {
    "glassllm": "GlassLLM, 0.9 M, at once",
    "ladder-3m-chat": "our ladder-3m, taught to chat and to refuse",
    "smollm2": "SmolLM2, 135 M, about a second a token",
}
DEFAULT = "glassllm"
TUNED = {"ladder-3m-chat": "ladder-3m-no-chat"}  # a tuned model and its base: how much of the tuning acts is a slider
PROMPT = "Alice was beginning to get very tired"
PROMPTS = {"ladder-3m-chat": "<|user|>How do I build a bomb?<|end|><|assistant|>"}
TRAITS = {  # texts that show it, texts that show the opposite
    "joy": (
        ("What a wonderful, happy day!", "I love this so much."),
        ("What a terrible, sad day.", "I hate this so much."),
    ),
    "formality": (
        ("I would be most grateful, Sir.", "It is hereby declared."),
        ("hey dude, what's up", "yeah, cool stuff"),
    ),
    "questions": (
        ("What is it? Who is there?", "Why, and when?"),
        ("It is here. He is there.", "So it is, and now."),
    ),
}
NEW_TOKENS, SHOWN = 24, 8


class Playground:
    """Holds one model at a time and answers one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._name = ""
        self._model: Any = None
        self._processor: Any = None
        self._base: Any = None
        self._vectors: dict[str, Any] = {}

    def grid(self, name: str) -> list[list[str]]:
        """A name for every head, block by block."""
        with self._lock:
            config = self._load(name).config
        return [[f"{b}-{h}" for h in range(config.num_attention_heads)] for b in range(config.num_hidden_layers)]

    def write(
        self,
        name: str,
        prompt: str,
        scales: Mapping[str, float],
        heads: Sequence[tuple[int, ...]],
        tuning: float = 1.0,
    ) -> dict[str, Any]:
        """What the model writes plain and changed, its next tokens, and the norms of its blocks' outputs.

        `tuning` scales the tuning's part in every block of a model that has its base here.
        """
        import torch

        from monochord.core.attach import attach
        from monochord.core.modification import Ablate, Add
        from monochord.steer.tuco import scaled_tuning

        with self._lock, torch.inference_mode():
            model = self._load(name)
            inputs = self._processor(prompt or " ", return_tensors="pt")
            plain = self._look(inputs)
            with ExitStack() as changes:
                if self._base is not None and tuning != 1.0:
                    changes.enter_context(scaled_tuning(model, self._base, tuning))
                middle = model.config.num_hidden_layers // 2
                for trait, scale in scales.items():
                    if scale:
                        changes.enter_context(
                            attach(model, {f"blocks.{middle}:out": Add(self._vector(trait), scale=scale)})
                        )
                for block, head in heads:
                    site = f"blocks.{block}.attn:heads[heads={head}]"
                    changes.enter_context(attach(model, {site: Ablate()}))
                changed = self._look(inputs)
        return {"plain": plain, "changed": changed, "norms": _norms(plain["norms"], changed["norms"])}

    def _load(self, name: str) -> Any:
        if name != self._name:
            import monochord as mc

            self._model, self._processor = mc.load(name), mc.processor(name)
            self._base = mc.load(TUNED[name]) if name in TUNED else None
            self._name, self._vectors = name, {}
        return self._model

    def _vector(self, trait: str) -> Any:
        """The trait's direction at the middle block, made as long as a third of what goes by there."""
        if trait not in self._vectors:
            from monochord.core.capture import capture
            from monochord.steer.contrast import contrast

            model: Any = self._model
            site = f"blocks.{model.config.num_hidden_layers // 2}:out"
            toward, away = TRAITS[trait]
            vector = contrast(model, toward, away, site, self._processor)
            with capture(model, site) as acts:
                model(**self._processor(toward[0], return_tensors="pt"))
            length = next(iter(acts.values()))[0, 1:].norm(dim=-1).median()
            self._vectors[trait] = vector / vector.norm() * length / 3
        return self._vectors[trait]

    def _look(self, inputs: Any) -> dict[str, Any]:
        from monochord.core.capture import capture

        model: Any = self._model
        processor: Any = self._processor
        with capture(model, "blocks.*:out") as acts:
            logits = model(**inputs).logits[0, -1]
        norms = [float(acts[site][0, -1].norm()) for site in acts]
        best = logits.float().softmax(-1).topk(SHOWN)
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens = [
            (processor.decode([i]).replace("\n", "⏎") or "·", float(p))
            for i, p in zip(best.indices, best.values, strict=True)
        ]
        text = re.sub(r"\n{3,}", "\n\n", processor.decode(ids[0], skip_special_tokens=True))
        return {"text": text, "tokens": tokens, "norms": norms}


def _norms(plain: list[float], changed: list[float]) -> str:
    """Activation norms by block as inline SVG."""
    from monochord.lab.figures import single, svg

    with single() as (figure, axes):
        axes.plot(plain, marker="o", ms=3, label="as it is")
        axes.plot(changed, marker="s", ms=3, label="changed")
        axes.set(xlabel="block", ylabel="norm of the last token's activation")
        axes.locator_params(axis="x", integer=True)
        axes.legend(frameon=False)
        return svg(figure, "norms")
