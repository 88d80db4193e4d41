"""Reading 36 sites of 12 layers against a bare forward and against hooks written by hand.

python benchmarks/capture.py
"""

import torch
from timing import ratios, show
from torch import nn
from transformers import GPT2Config, GPT2Model

import monochord as mc

SITES = ["blocks.*:out", "blocks.*.attn:out", "blocks.*.mlp:out"]


def model_of(width: int) -> nn.Module:
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_embd=width, n_layer=12, n_head=width // 32, vocab_size=1000)).eval()


def by_hand(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module, args, output):
            kept[name] = (output if isinstance(output, torch.Tensor) else output[0]).detach()

        return hook

    handles = []
    for i, block in enumerate(model.h):
        for part, module in (("", block), (".attn", block.attn), (".mlp", block.mlp)):
            handles.append(module.register_forward_hook(keep(f"{i}{part}")))
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def main() -> None:
    for width, shape, base, bar in ((768, (8, 128), "bare forward", 1.03), (96, (1, 16), "hooks by hand", 1.10)):
        model, ids = model_of(width), torch.randint(0, 1000, shape)
        reading = mc.capture(model, SITES)

        def ours(model=model, ids=ids, reading=reading):
            with reading:
                model(ids, use_cache=False)

        with torch.inference_mode():
            ours()
            wanted = by_hand(model, ids)
            assert len(reading) == 36 and torch.equal(reading["blocks.11.mlp:out"], wanted["11.mlp"])
            found = ratios(
                {
                    "bare forward": lambda model=model, ids=ids: model(ids, use_cache=False),
                    "hooks by hand": lambda model=model, ids=ids: by_hand(model, ids),
                    "monochord": ours,
                },
                base,
                rounds=15 if width > 100 else 100,
            )
        show(f"12 layers x {width}, {shape[0]} x {shape[1]} tokens, to {base}", found, {"monochord": bar})


if __name__ == "__main__":
    main()
