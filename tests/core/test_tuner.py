"""Every reference method on every architecture holds every invariant, by the conformance kit alone."""

import pytest
import torch
import zoo
from torch import nn

from monochord.adapt import IA3, BitFit, BottleneckAdapter, DoRA, FullTuning, HalfTuning, LastLayer, LoRA, PromptTokens
from monochord.adapt.mask_tuning import MaskTuning
from monochord.adapt.random_parameters import RandomParameters
from monochord.core.changes import LowRank
from monochord.core.delta import Delta
from monochord.core.sites import SiteError
from monochord.core.storage import StorageError
from monochord.core.tuner import Tuned, Tuner
from monochord.testing import check_tuner

TUNERS = {
    "lora": lambda: LoRA(rank=2),
    "lora everywhere": lambda: LoRA(rank=1, sites="blocks.**.weight"),
    "lora on convolutions": lambda: LoRA(rank=1, sites="**.*conv*.weight"),
    "dora": lambda: DoRA(rank=2),
    "bitfit": BitFit,
    "full": FullTuning,
    "last layer": LastLayer,
    "adapter": lambda: BottleneckAdapter(bottleneck=4),
    "parallel adapter": lambda: BottleneckAdapter(bottleneck=4, parallel=True, scale=2.0),
    "prompt": lambda: PromptTokens(3),
    "ia3": IA3,
    "half": HalfTuning,
    "three at once": lambda: LoRA(rank=2) | BottleneckAdapter(bottleneck=4) | PromptTokens(2),
}
NOT_THERE = {  # and the error that says so
    "lora": ("mamba", "mamba2", "unet", "convnext", "resnet", "sequential"),
    "lora everywhere": ("unet",),
    "lora on convolutions": (
        "gpt2", "llama", "qwen2", "gemma", "gpt-neox", "bert", "roberta", "t5", "mixtral", "multihead", "sequential",
        "vit", "clip", "dinov2", "ast", "dit",
    ),
    "bitfit": ("llama", "gemma", "t5", "mixtral"),
    "last layer": ("unet",),
    "adapter": ("mamba", "mamba2", "unet", "resnet", "sequential"),
    "prompt": ("whisper", "unet", "unet-conditional", "convnext", "resnet", "sequential"),
    "ia3": ("mamba", "mamba2", "unet", "resnet", "sequential"),
    "full": (),
    "half": (),
}  # fmt: skip
NOT_THERE["dora"] = NOT_THERE["lora"]
NOT_THERE["parallel adapter"] = NOT_THERE["adapter"]
NOT_THERE["three at once"] = tuple(sorted({*NOT_THERE["lora"], *NOT_THERE["adapter"], *NOT_THERE["prompt"]}))
GRID = [(t, m) for t in TUNERS for m in zoo.MODELS if m not in NOT_THERE[t]]


@pytest.mark.parametrize(("tuner", "name"), GRID)
def test_conformance(tuner: str, name: str) -> None:
    check_tuner(TUNERS[tuner], zoo.build(name), zoo.batch(name))


@pytest.mark.parametrize(("tuner", "name"), [(t, m) for t, models in NOT_THERE.items() for m in models])
def test_what_a_model_has_not_is_said_in_one_line(tuner: str, name: str) -> None:
    model = zoo.build(name)
    before, flags = {n: v.clone() for n, v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()]
    with pytest.raises(SiteError) as error:
        TUNERS[tuner]().attach(model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_attention_of_unets_has_native_names() -> None:
    for name in ("unet", "unet-conditional"):
        check_tuner(lambda: LoRA(rank=2, sites="**.to_{q,v}.weight"), zoo.build(name), zoo.batch(name))


@pytest.mark.parametrize("layer", [
    nn.Conv1d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, dilation=2), nn.Conv3d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"),
    nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.ConvTranspose3d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Embedding(9, 4),
], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    "tuner", [LoRA(rank=1, sites="0.weight"), DoRA(rank=1, sites="0.weight")], ids=["lora", "dora"]
)
def test_every_kind_of_layer(layer: nn.Module, tuner: Tuner) -> None:
    model = nn.Sequential(layer).double()
    dims = len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0
    x = torch.arange(6).reshape(2, 3) if isinstance(layer, nn.Embedding) else torch.randn(2, 4, *[9] * dims).double()
    check_tuner(lambda: tuner, model, {"input": x}, tolerance=1e-6)


def test_counts_equal_the_formulas() -> None:
    model = zoo.build("llama")  # two blocks of width 32, two key-value heads of 8, MLP of 64
    expected = {
        LoRA(rank=4): 2 * (4 * (32 + 32) + 4 * (32 + 16)),
        DoRA(rank=4): 2 * (4 * (32 + 32) + 4 * (32 + 16)) + 2 * (32 + 16),
        BottleneckAdapter(bottleneck=4): 2 * (2 * 4 * 32 + 4 + 32),
        PromptTokens(5): 5 * 32,
        IA3(): 2 * (16 + 16 + 64),
        FullTuning(): sum(p.numel() for p in model.parameters()),
        FullTuning("blocks.0.mlp"): 3 * 32 * 64,
    }
    for tuner, count in expected.items():
        with tuner.attach(model) as tuned:
            assert tuned.n_trainable == count == sum(p.numel() for p in model.parameters() if p.requires_grad), tuner


def test_half_of_each_block_trains_and_another_half_with_another_seed() -> None:
    model = zoo.build("llama")
    chosen = []
    for seed in (0, 0, 1):
        with HalfTuning(sites="blocks.**").attach(model, seed=seed) as tuned:
            chosen.append({s.name for s, _ in tuned.placements})
            for i in range(2):
                names = [n for n in chosen[-1] if n.startswith(f"blocks.{i}.")]
                assert sum(".attn." in n for n in names) == 2 and sum(".mlp." in n for n in names) in (1, 2)
            assert sum(".mlp." in n for n in chosen[-1]) == 3
    assert chosen[0] == chosen[1] != chosen[2]
    with HalfTuning(ratio=1.0).attach(model) as tuned:
        assert tuned.n_trainable == sum(p.numel() for p in model.parameters())


def test_the_latest_tuner_trains_and_flags_come_back_in_any_order() -> None:
    model = zoo.build("bert")
    model.embeddings.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    a, b = LoRA(rank=2).attach(model, name="a"), BottleneckAdapter(bottleneck=2).attach(model, name="b")
    assert not any(p.requires_grad for p in a.parameters()) and all(p.requires_grad for p in b.parameters())
    a.detach()
    assert all(p.requires_grad for p in b.parameters())
    assert sum(p.requires_grad for p in model.parameters()) == len(b.trained)
    b.detach()
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_delta_holds_factors_and_does_what_the_tuner_does() -> None:
    lora = [(name, LoRA(rank=2)) for name in ("llama", "gpt2", "gpt-neox", "multihead")]
    for name, tuner in [*lora, ("bert", DoRA(rank=2)), ("llama", IA3()), ("bert", HalfTuning())]:
        model, given = zoo.build(name), zoo.batch(name)
        with tuner.attach(model) as tuned:
            with torch.no_grad():
                for i, p in enumerate(tuned.parameters()):
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            wanted, delta = zoo.run(model, given), tuned.delta()
        with delta.applied(model):
            torch.testing.assert_close(zoo.run(model, given), wanted, atol=1e-5, rtol=1e-4)
        if isinstance(tuner, LoRA):
            assert all(type(e).__name__ == "LowRank" for e in delta.values())
            assert sum(e.nbytes for e in delta.values()) < Delta({n: e.dense() for n, e in delta.items()}).nbytes
    with pytest.raises(ValueError, match="changes no weights"), PromptTokens(2).attach(zoo.build("bert")) as tuned:
        tuned.delta()


def test_saved_files_hold_only_what_was_tuned(tmp_path) -> None:
    model = zoo.build("llama")
    with LoRA(rank=2).attach(model) as tuned:
        tuned.save(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "tensors.safetensors"]
        assert (tmp_path / "tensors.safetensors").stat().st_size < 4 * tuned.n_trainable + 4000
    with pytest.raises(StorageError, match="load that base, or pass strict=False"):
        Tuned.load(zoo.build("qwen2"), tmp_path)
    other = zoo.build("llama")
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    Tuned.load(other, tmp_path, strict=False).detach()


def test_tied_weights_are_not_merged_without_a_word() -> None:
    model, given = zoo.build("gpt2"), zoo.batch("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    with LoRA(rank=2, sites="unembed.weight").attach(model) as tuned:
        torch.nn.init.normal_(tuned.placements[0][1].up, std=0.1, generator=torch.Generator().manual_seed(0))
        wanted, embedded = zoo.run(model, given), model.transformer.wte.weight.detach().clone()
        with pytest.raises(ValueError, match=r"tied='both'.*tied='untie'"):
            tuned.merge()
        assert tuned.merge(verify=given, tied="untie") < 1e-5
        torch.testing.assert_close(zoo.run(model, given), wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.transformer.wte.weight, embedded)
        tuned.unmerge()
        assert model.lm_head.weight is model.transformer.wte.weight
        tuned.merge(tied="both")
        assert not torch.equal(model.transformer.wte.weight, embedded)
    assert torch.equal(model.transformer.wte.weight, embedded)


@pytest.mark.parametrize("tuner", [RandomParameters(n=50), MaskTuning(init=0.005001)], ids=["sparse", "mask"])
def test_a_parametrized_weight_is_not_taken_for_a_tied_one(tuner) -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    with tuner.attach(model) as tuned:
        assert tuned.merge(verify=given) < 1e-5


def test_what_can_not_be_merged_says_so() -> None:
    model = zoo.build("bert")
    with BottleneckAdapter(bottleneck=2).attach(model) as tuned:
        assert not tuned.mergeable
        with pytest.raises(ValueError, match=r"Bottleneck at blocks\.0\.mlp:out has no equivalent"):
            tuned.merge()
    with LoRA(rank=2).attach(model) as tuned:
        assert tuned.mergeable
        tuned.merge()
        with pytest.raises(ValueError, match="merged already"):
            tuned.merge()


def test_a_rank_that_does_not_fit_says_which_would() -> None:
    with pytest.raises(ValueError, match=r"rank=17 does not fit blocks.0.attn.v.weight \(16 by 32\): use 1 to 16"):
        LoRA(rank=17).attach(zoo.build("llama"))


def test_norms_stand_still_in_training() -> None:
    model, given = zoo.build("resnet"), zoo.batch("resnet")
    with LoRA(rank=1, sites="**.convolution.weight").attach(model):
        model.train()
        statistics = {n: b.clone() for n, b in model.named_buffers()}
        model(**given)
        assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics)
    model.train()
    model(**given)
    assert not all(torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics)


def test_shared_first_products_are_exact_and_only_shared_where_inputs_are() -> None:
    """Low-rank changes of q, k and v are computed jointly; one with dropout or another input is not."""
    model, given = zoo.build("llama"), zoo.batch("llama")
    with LoRA(rank=2, sites=("blocks.*.attn.{q,k,v,o}.weight", "blocks.*.mlp.{gate,up,down}.weight")).attach(
        model
    ) as tuned:
        for i, (_, change) in enumerate(tuned.placements):
            torch.nn.init.normal_(change.up, std=0.1, generator=torch.Generator().manual_seed(i))
        joint = zoo.run(model, given)
        tuned.merge()
        torch.testing.assert_close(zoo.run(model, given), joint, atol=1e-5, rtol=1e-4)


def test_experts_get_factors_of_their_own() -> None:
    model = zoo.build("mixtral")
    with LoRA(rank=2, sites="blocks.0.experts.down_proj").attach(model) as tuned:
        change = tuned.placements[0][1]
        assert isinstance(change, LowRank) and change.up.shape == (4, 32, 2) and change.delta().shape == (4, 32, 64)
