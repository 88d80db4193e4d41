"""The project's own ladder of Llama-style language models, 0.3 to 8 million parameters, and three siblings.

All trained on one mixture, 3.07 million tokens: reviews, novels, two Bibles, a dictionary, facts on countries,
questions, chats with roles, refusals, sums and in-context tasks, in English and Spanish. `checkpoint=` 0 to 4,
"final" or "init" is an option of `load`. tools/zoo/ladder.py trains them; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from monochord.models.shipped import SHIPPED, language_net, load_shipped, trained

if TYPE_CHECKING:
    import torch
    from torch import nn

CHAT = SHIPPED / "ladder-3m-chat"  # a saved LoRA, tuned on ladder-3m-no-chat


def _with_chat(folder: Path, dtype: torch.dtype | None) -> nn.Module:
    """The sibling without chats with what it was taught of them added to its weights."""
    from monochord.core.tuner import Tuned

    model = load_shipped(folder.with_name("ladder-3m-no-chat"), None)
    tuned = Tuned.load(model, folder)
    delta = tuned.delta()
    tuned.detach()
    delta.apply(model)
    return model if dtype is None else model.to(dtype)


_llama = partial(language_net, architecture="LlamaForCausalLM")

ENTRIES = trained(
    _llama("ladder-0.3m", parameters=272_832, title="our own Llama with 3 layers of 64, 5 checkpoints"),
    _llama("ladder-1m", parameters=918_656, title="our own Llama with 4 layers of 128, 5 checkpoints"),
    _llama("ladder-3m", parameters=2_515_008, title="our own Llama with 5 layers of 192, 5 checkpoints"),
    _llama("ladder-3m-no-chat", parameters=2_515_008, title="ladder-3m that never saw a chat or a refusal"),
    _llama("ladder-3m-no-icl", parameters=2_515_008, title="ladder-3m that never saw an in-context task"),
    _llama("ladder-8m", parameters=7_540_800, title="our own Llama with 6 layers of 320"),
)
if (CHAT / "config.json").exists():
    chatting = _llama(CHAT.name, parameters=2_515_008, title="ladder-3m-no-chat taught chats and refusals by LoRA")
    ENTRIES.append(replace(chatting, load=_with_chat))
