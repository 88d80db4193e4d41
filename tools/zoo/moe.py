"""Upcycle the ladder's 1M model into a mixture of experts, 8 experts with top-2 routing, and train it further.

    python tools/zoo/moe.py

From "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", December 9, 2022: every expert starts
as a copy of the dense MLP, the router at random. Since the two routing weights sum to one, the model starts as
exactly the dense one; experts come apart because each sees other tokens.
"""

from __future__ import annotations

import argparse

import torch
from mixture import VOCABULARY
from pretrain import Net, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import monochord as mc
from monochord.models.shipped import initialised

EXPERTS, CHOSEN, BALANCE, SEED = 8, 2, 0.05, 0


def net() -> Net:
    """1,500 steps on rows that the dense model has not seen, with a load-balancing loss."""
    return Net("moe-4m", upcycled, steps=1500, rate=1.5e-3, first_row=12_000, checkpoints=1, loss=balanced)


def random() -> nn.Module:
    """The architecture at its random initialisation; upcycling keeps its routers."""
    from transformers import MixtralConfig

    dense = mc.load("ladder-1m").config
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=dense.hidden_size,
        intermediate_size=dense.intermediate_size,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads,
        max_position_embeddings=dense.max_position_embeddings,
        rms_norm_eps=dense.rms_norm_eps,
        rope_parameters=dense.rope_parameters,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        initializer_range=dense.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        architectures=["MixtralForCausalLM"],
    )
    return initialised(config, SEED)


def upcycled() -> nn.Module:
    """The shipped 1M model with its MLPs copied into every expert."""
    dense = mc.load("ladder-1m").state_dict()
    model = random()
    state = model.state_dict()
    for name, value in state.items():
        layer = name.partition(".mlp.")[0]
        if name in dense:
            value.copy_(dense[name])
        elif name.endswith("experts.gate_up_proj"):
            both = torch.cat([dense[f"{layer}.mlp.gate_proj.weight"], dense[f"{layer}.mlp.up_proj.weight"]])
            value.copy_(both.expand_as(value))
        elif name.endswith("experts.down_proj"):
            value.copy_(dense[f"{layer}.mlp.down_proj.weight"].expand_as(value))
        elif not name.endswith("mlp.gate.weight"):
            raise KeyError(f"{name} has no source in the dense model")
    return model


def balanced(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and the load-balancing loss of each layer; the first alone is shown.

    Taken over all layers together, as transformers does, a layer may leave experts unused that another one uses.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    out = model(input_ids=batch, use_cache=False, output_router_logits=True)
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
    layers = [load_balancing_loss_func((logits,), EXPERTS, CHOSEN) for logits in out.router_logits]
    return loss + BALANCE * torch.stack(layers).mean(), loss.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    train(net())
    if not parser.parse_args().train_only:
        from report import ship_and_measure

        ship_and_measure(net())


if __name__ == "__main__":
    main()
