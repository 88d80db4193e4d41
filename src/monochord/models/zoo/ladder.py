"""The project's own ladder of Llama-style language models, 0.3 to 8 million parameters, and two siblings.

All trained on one mixture, 3.07 million tokens: reviews, novels, two Bibles, a dictionary, facts on countries,
questions, chats with roles, refusals, sums and in-context tasks, in English and Spanish. `checkpoint=` 0 to 4,
"final" or "init" is an option of `load`. tools/zoo/ladder.py trains them; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

from monochord.models.shipped import Shipped, load_shipped, tokenizer


def _entry(name: str, parameters: int, title: str) -> Shipped:
    return Shipped(
        name=name,
        kind="causal-lm",
        title=title,
        licence="Apache-2.0, ours; its reviews belong to their authors, its dictionary is GPL",
        package=None,
        parameters=parameters,
        architecture="LlamaForCausalLM",
        load=load_shipped,
        processor=tokenizer,
    )


ENTRIES = [
    _entry("ladder-0.3m", 272_832, "our own Llama with 3 layers of 64, with 5 checkpoints"),
    _entry("ladder-1m", 918_656, "our own Llama with 4 layers of 128, with 5 checkpoints"),
]
