"""A training step of LoRA, DoRA and prompt tuning against plain hand-written torch and against peft.

    python benchmarks/tuning.py

Times are ratios within one run; memory is what autograd saves for the backward pass, and the peak of the process.
"""

import argparse
import math
from collections.abc import Callable

import torch
from timing import Report, peak, ratios, rise
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from monochord.adapt import DoRA, LoRA, PromptTokens

RANK, ALPHA = 8, 16.0
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
SITES = ("blocks.*.attn.{q,v}.weight", "blocks.*.mlp.{up,down}.weight")
SIZES = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}


def model_of() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=1000, use_cache=False)).train()


class PlainLoRA(nn.Module):
    """What one writes by hand: `base(x) + scale * x @ down.T @ up.T`."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + ALPHA / RANK * F.linear(F.linear(x, self.down), self.up)


class PlainDoRA(PlainLoRA):
    """The floor of a bypass: the row norms of the changed weight from products with its factors."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.squares = base.weight.detach().square().sum(1)
        self.magnitude = nn.Parameter(self.squares.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        scale = ALPHA / RANK
        with torch.no_grad():
            cross = (self.base.weight @ self.down.T * self.up).sum(1)
            low = ((self.up @ (self.down @ self.down.T)) * self.up).sum(1)
            norm = (self.squares + 2 * scale * cross + scale**2 * low).sqrt()
        return (self.base(x) + scale * F.linear(F.linear(x, self.down), self.up)) * (self.magnitude / norm)


def by_hand(kind: type[PlainLoRA]) -> LlamaForCausalLM:
    model = model_of().requires_grad_(False)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, layer in list(parent.named_children()):
                if name in TARGETS:
                    setattr(parent, name, kind(layer))
    return model


def by_peft(**options) -> nn.Module:
    from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

    if "tokens" in options:
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=options["tokens"])
    else:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0, **options)
    return get_peft_model(model_of(), config).train()


def by_us(tuner) -> nn.Module:
    model = model_of()
    tuner.attach(model)
    return model


class PlainPrompt(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.model = model_of().requires_grad_(False)
        self.tokens = nn.Parameter(torch.randn(length, SIZES["hidden_size"]))

    def forward(self, input_ids: Tensor, labels: Tensor):
        embeds = self.model.model.embed_tokens(input_ids)
        prompt = self.tokens.expand(len(input_ids), -1, -1)
        ignored = labels.new_full((len(labels), len(self.tokens)), -100)
        return self.model(inputs_embeds=torch.cat([prompt, embeds], 1), labels=torch.cat([ignored, labels], 1))


WAYS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "LoRA": {
        "by hand": lambda: by_hand(PlainLoRA),
        "peft": by_peft,
        "monochord": lambda: by_us(LoRA(SITES, rank=RANK, alpha=ALPHA)),
    },
    "DoRA": {
        "by hand": lambda: by_hand(PlainDoRA),
        "peft": lambda: by_peft(use_dora=True),
        "monochord": lambda: by_us(DoRA(SITES, rank=RANK, alpha=ALPHA)),
    },
    "prompt": {
        "by hand": lambda: PlainPrompt(20),
        "peft": lambda: by_peft(tokens=20),
        "monochord": lambda: by_us(PromptTokens(20)),
    },
}
BARS = {"LoRA": ("by hand", 0.97), "DoRA": ("by hand", 1.05), "prompt": ("peft", 1.0)}


def step_of(model: nn.Module, shape: tuple[int, int]) -> Callable[[], float]:
    ids = torch.randint(0, 1000, shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def saved_bytes(model: nn.Module, shape: tuple[int, int]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    ids = torch.randint(0, 1000, shape)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        model(input_ids=ids, labels=ids).loss.backward()
    return sum(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.one:
        method, way = arguments.one
        print(rise(step_of(WAYS[method][way](), (8, 256))))
        return
    report = Report(__file__)
    for method, ways in WAYS.items():
        base, bar = BARS[method]
        for shape in ((4, 128), (1, 16)):
            steps = {way: step_of(build(), shape) for way, build in ways.items()}
            rounds = arguments.rounds * (1 if shape[0] > 1 else 4)
            report.add(
                f"{method} step, {shape[0]} x {shape[1]} tokens", f"time of {base}", ratios(steps, base, rounds), bar
            )
        saved = {way: saved_bytes(build(), (4, 128)) / 2**20 for way, build in ways.items()}
        report.add(f"{method}, kept for the backward pass, 4 x 128 tokens", "MiB", saved, round(saved["peft"], 2))
        peaks = {way: peak(__file__, method, way) for way in ways}
        report.add(f"{method}, peak of a step, 8 x 256 tokens", "MiB above the model", peaks, round(peaks["peft"], 2))
    report.save()


if __name__ == "__main__":
    main()
