"""Reading 36 sites of 12 layers against a bare forward and against hooks written by hand.

python benchmarks/capture.py
"""

import torch
from timing import Report, optional, ratios
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


def by_nnsight(nnsight, model: nn.Module):
    traced = nnsight.NNsight(model)

    def run(ids: torch.Tensor) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        with traced.trace(ids, use_cache=False):
            for block in traced.h:
                for part in (block.attn, block.mlp, block):
                    kept.append(part.output.save())
        assert len(kept) == 36
        return kept

    return run


def by_pyvene(pyvene, model: nn.Module):
    parts = [(i, part) for i in range(12) for part in ("block_output", "attention_output", "mlp_output")]
    kinds = [{"layer": i, "component": part, "intervention_type": pyvene.CollectIntervention} for i, part in parts]
    intervenable = pyvene.IntervenableModel(kinds, model=model)

    def run(ids: torch.Tensor):
        return intervenable({"input_ids": ids, "use_cache": False})

    return run


def main() -> None:
    report = Report(__file__)
    peers = {"nnsight": by_nnsight, "pyvene": by_pyvene}
    modules = {name: optional(name) for name in peers}
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
            ways = {
                "bare forward": lambda model=model, ids=ids: model(ids, use_cache=False),
                "hooks by hand": lambda model=model, ids=ids: by_hand(model, ids),
                "monochord": ours,
            }
            for name, module in modules.items():
                if module is not None:
                    run = peers[name](module, model_of(width))
                    ways[name] = lambda run=run, ids=ids: run(ids)
            found = ratios(ways, base, rounds=15 if width > 100 else 100)
        report.add(f"read 36 sites, 12 layers x {width}, {shape[0]} x {shape[1]} tokens", f"time of {base}", found, bar)
    report.save()


if __name__ == "__main__":
    main()
