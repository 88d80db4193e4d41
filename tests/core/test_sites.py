"""Sites resolve to the right tensors on every architecture: by shape and by meaning."""

import pytest
import torch
import zoo
from torch import nn

from monochord.core.anatomy import anatomy
from monochord.core.blocks import kind
from monochord.core.capture import capture
from monochord.core.ports import first_tensor
from monochord.core.sites import SiteError, resolve, sites, width

BLOCKS = tuple(m for m in zoo.MODELS if m != "unet")
DENSE = tuple(m for m in zoo.ATTENTION if m not in ("mixtral",))


def matching(model: nn.Module, pattern: str) -> list[str]:
    try:
        return [str(s) for s in resolve(model, pattern)]
    except SiteError:
        return []


def read(name: str, *patterns: str):
    model, given = zoo.build(name), zoo.batch(name)
    with torch.no_grad(), capture(model, patterns) as acts:
        model(**given)
    return model, acts


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found_and_run_in_order(name: str) -> None:
    model, given = zoo.build(name), zoo.batch(name)
    order: list[str] = []
    found = resolve(model, "blocks.*:out")
    for site in found:
        model.get_submodule(site.module).register_forward_hook(lambda *_, n=str(site): order.append(n))
    zoo.run(model, given)
    stacks = {s.name.partition("blocks")[0] for s in found}
    for stack in stacks:
        mine = [s for s in order if s.startswith(f"{stack}blocks")]
        assert mine == [f"{stack}blocks.{i}:out" for i in range(len(mine))] and mine


@pytest.mark.parametrize(
    "name", [m for m in BLOCKS if m not in ("resnet", "convnext", "sequential", "unet-conditional")]
)
def test_blocks_hand_on_the_residual_stream(name: str) -> None:
    """What leaves block N is what enters block N + 1, so differences of outputs sum to the stream."""
    _, acts = read(name, "blocks.*:in", "blocks.*:out")
    stacks = {n.partition("blocks")[0] for n in acts}
    for stack in stacks:
        count = sum(n.startswith(f"{stack}blocks") for n in acts) // 2
        assert count >= 2
        for i in range(count - 1):
            assert torch.equal(acts[f"{stack}blocks.{i}:out"], acts[f"{stack}blocks.{i + 1}:in"])
        stream = acts[f"{stack}blocks.0:in"] + sum(
            acts[f"{stack}blocks.{i}:out"] - acts[f"{stack}blocks.{i}:in"] for i in range(count)
        )
        torch.testing.assert_close(stream, acts[f"{stack}blocks.{count - 1}:out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "vit", "gpt-neox", "multihead"])
def test_attention_and_mlp_are_what_a_block_adds(name: str) -> None:
    _, acts = read(name, "blocks.*:in", "blocks.*:out", "blocks.*.attn:out", "blocks.*.mlp:out")
    for i in range(2):
        added = acts[f"blocks.{i}.attn:out"] + acts[f"blocks.{i}.mlp:out"]
        change = acts[f"blocks.{i}:out"] - acts[f"blocks.{i}:in"]
        torch.testing.assert_close(added, change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", zoo.ATTENTION)
def test_heads_through_the_output_projection_give_the_attention(name: str) -> None:
    model, acts = read(name, "**.{attn,cross}:heads", "**.{attn,cross}:out")
    owners = [n.removesuffix(":heads") for n in acts if n.endswith(":heads")]
    assert owners
    for owner in owners:
        heads = acts[f"{owner}:heads"]
        shape = anatomy(model).heads[owner]
        assert heads.shape[2:] == (shape.n_heads, shape.d_head)
        layer = model.get_submodule(resolve(model, f"{owner}.o.weight")[0].module)
        projected = nn.functional.linear(heads.flatten(-2), layer.weight, layer.bias) if name == "multihead" else layer(heads.flatten(-2))  # noqa: E501  # fmt: skip
        torch.testing.assert_close(projected, acts[f"{owner}:out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", zoo.ATTENTION)
def test_pattern_is_the_softmax_of_scores_and_makes_the_heads(name: str) -> None:
    ports = [f"**.{{attn,cross}}:{port}" for port in ("pattern", "scores", "heads")]
    model, acts = read(name, *ports, *(["**.v:out"] if name != "multihead" else []))
    for owner in [n.removesuffix(":pattern") for n in acts if n.endswith(":pattern")]:
        pattern, scores = acts[f"{owner}:pattern"], acts[f"{owner}:scores"]
        empty = torch.isneginf(scores).all(-1)
        torch.testing.assert_close(pattern.sum(-1), (~empty).float())
        softmax = torch.softmax(scores, -1)
        torch.testing.assert_close(pattern[~empty], softmax[~empty], atol=1e-6, rtol=1e-5)
        if name != "multihead":
            values = acts[f"{owner}.v:out"]
            shape = anatomy(model).heads[owner]
            split = values.unflatten(-1, (shape.n_kv_heads, shape.d_head)).transpose(1, 2)
            split = split.repeat_interleave(shape.n_heads // shape.n_kv_heads, 1)
            heads = (pattern @ split).transpose(1, 2)
            torch.testing.assert_close(heads, acts[f"{owner}:heads"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", (*DENSE, "convnext"))
def test_neurons_through_the_down_projection_give_the_mlp(name: str) -> None:
    model, acts = read(name, "**.mlp:neurons", "**.mlp:pre", "**.mlp.down:out", "**.mlp.up:out")
    owners = [n.removesuffix(":neurons") for n in acts if n.endswith(":neurons")]
    assert owners
    for owner in owners:
        down = model.get_submodule(resolve(model, f"{owner}.down.weight")[0].module)
        torch.testing.assert_close(down(acts[f"{owner}:neurons"]), acts[f"{owner}.down:out"])
        assert acts[f"{owner}:pre"].shape == acts[f"{owner}:neurons"].shape
        gated = f"{owner}.gate" in anatomy(model).parts
        assert torch.equal(acts[f"{owner}:pre"], acts[f"{owner}.up:out"]) != gated


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "multihead"])
def test_slices_of_fused_projections_are_q_k_and_v(name: str) -> None:
    """Attention computed by hand from the sliced weights equals what the model computes."""
    model, acts = read(name, "blocks.0.attn:in", "blocks.0.attn:heads", "blocks.0.attn:pattern")
    x, shape = acts["blocks.0.attn:in"], anatomy(model).heads["blocks.0.attn"]
    parts = {}
    for role in "qkv":
        weight, bias = (resolve(model, f"blocks.0.attn.{role}.{p}")[0] for p in ("weight", "bias"))
        assert weight.shape == (32, 32)
        owner = model.get_submodule(weight.module)
        matrix = getattr(owner, weight.parameter)
        matrix = (matrix.t() if weight.transposed else matrix)[list(weight.rows)]
        parts[role] = nn.functional.linear(x, matrix, getattr(owner, bias.parameter)[list(bias.rows)])
    values = parts["v"].unflatten(-1, (shape.n_heads, shape.d_head)).transpose(1, 2)
    heads = (acts["blocks.0.attn:pattern"] @ values).transpose(1, 2)
    torch.testing.assert_close(heads, acts["blocks.0.attn:heads"], atol=1e-5, rtol=1e-4)
    if name == "gpt2":
        assert [str(s) for s in resolve(model, "blocks.*.attn.qkv.weight[q]")] == matching(
            model, "blocks.*.attn.q.weight"
        )


def test_routers_and_experts_are_found() -> None:
    model, acts = read("mixtral", "blocks.*.router", "blocks.*.mlp:in")
    logits = acts["blocks.0.router"]
    router = model.get_submodule(resolve(model, "blocks.0.router")[0].module)
    torch.testing.assert_close(logits, (acts["blocks.0.mlp:in"].flatten(0, 1) @ router.weight.T), atol=1e-5, rtol=1e-5)
    assert resolve(model, "blocks.0.experts.down_proj")[0].shape == (4, 32, 64)


@pytest.mark.parametrize("name", ["unet", "unet-conditional"])
def test_skips_are_what_the_down_path_pushed(name: str) -> None:
    model, acts = read(name, "skips.*", "embed", "down.*.resnets.0", "mid", "up.0", "down.0")
    assert torch.equal(acts["skips.0"], acts["embed"])
    assert len(matching(model, "skips.*")) == 4
    with torch.no_grad(), capture(model, "skips.*") as again:
        model(**zoo.batch(name))
    assert torch.equal(again["skips.3"], acts["skips.3"])


def test_recurrent_state_is_the_one_in_the_cache() -> None:
    model, given = zoo.build("mamba"), zoo.batch("mamba")
    with torch.no_grad(), capture(model, "blocks.*.ssm:state") as acts:
        cache = model(**given, use_cache=True).cache_params
    for i in range(2):
        states = cache.layers[i].recurrent_states  # by number in newer transformers
        assert torch.equal(acts[f"blocks.{i}.ssm:state"], states if torch.is_tensor(states) else states[0])
    with pytest.raises(SiteError, match="use_cache=True"), capture(model, "blocks.0.ssm:state"):
        model(**given, use_cache=False)


def test_embedding_and_ends() -> None:
    for name in ("llama", "gpt2", "mamba"):
        model, acts = read(name, "embed", "final_norm", "unembed")
        embedding = model.get_input_embeddings()
        assert torch.equal(acts["embed"], embedding(zoo.batch(name)["input_ids"]))
        assert torch.equal(acts["unembed"], model.get_output_embeddings()(acts["final_norm"]))
    model, acts = read("vit", "embed", "final_norm", "blocks.0:in")
    assert torch.equal(acts["embed"], acts["blocks.0:in"])


def test_names_can_be_native_canonical_or_counted_from_the_end() -> None:
    model = zoo.build("llama")
    for pattern in ("blocks.1.mlp", "blocks.-1.mlp", "model.layers.1.mlp", "*.layers.1.mlp"):
        assert matching(model, pattern) == ["blocks.1.mlp:out"]
    both = zoo.build("t5")
    assert matching(both, "blocks.-1:out") == ["encoder.blocks.1:out", "decoder.blocks.1:out"]
    assert matching(both, "encoder.blocks.-1:out") == ["encoder.blocks.1:out"]


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    model = zoo.build("llama")
    with pytest.raises(SiteError, match=r"matches nothing in LlamaForCausalLM: nearest are blocks\.\*\.mlp"):
        resolve(model, "blocks.*.mpl:out")
    with pytest.raises(SiteError, match="no site there has the port :pattern"):
        resolve(model, "blocks.0.mlp:pattern")
    with pytest.raises(SiteError, match="no module of this model"):
        resolve(model, "blocks.0", blocks="encoder.stages")


def test_the_list_of_blocks_can_be_named_by_hand() -> None:
    model = nn.Module()
    model.first = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.second = nn.ModuleList([nn.Linear(50, 50), nn.Linear(50, 50)])
    assert resolve(model, "blocks.0", blocks="first")[0].module == "first.0"
    assert resolve(model, "blocks.0", blocks="second")[0].module == "second.0"


def test_a_module_stands_for_its_weights_where_weights_are_wanted() -> None:
    model = zoo.build("bert")
    found = resolve(model, "blocks.0.attn.q", kind="weight")
    assert [s.name for s in found] == ["blocks.0.attn.q.weight", "blocks.0.attn.q.bias"]
    every = resolve(model, "**", kind="weight")
    trainable = {s.path for s in every if s.rows is None} & dict(model.named_parameters()).keys()
    assert trainable == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_tree_lists_every_weight_with_its_shape(name: str) -> None:
    model = zoo.build(name)
    listed = {path: shape for _, path, shape in sites(model) if shape is not None}
    assert dict(model.named_parameters()).keys() <= listed.keys()
    text = str(sites(model))
    assert text.startswith(type(model).__name__) and text.count("\n") >= len(listed)


def test_widths_are_told_from_weights() -> None:
    for name in ("llama", "bert", "gpt2", "vit", "mixtral", "t5"):
        model, acts = read(name, "blocks.*.mlp:out", "blocks.*.attn:out", "blocks.*:out", "embed")
        for site in resolve(model, ["blocks.*.mlp:out", "blocks.*.attn:out", "blocks.*:out", "embed"]):
            assert width(model, site) == acts[str(site)].shape[-1], site


def test_shared_blocks_are_seen_call_by_call() -> None:
    block = nn.Linear(4, 4)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(x))

    model, x = Shared(), torch.ones(1, 4)
    with torch.no_grad(), capture(model, ["block[call=0]", "block[call=1]"]) as acts:
        model(x)
    assert torch.equal(acts["block:out[call=0]"], block(x).detach())
    assert torch.equal(acts["block:out[call=1]"], block(block(x)).detach())


def test_kinds_survive_parametrization() -> None:
    layer = nn.Linear(2, 2)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert kind(layer) == "Linear"
    assert first_tensor((torch.ones(1),)).item() == 1
