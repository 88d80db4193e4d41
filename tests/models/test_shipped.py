"""Storing nets as int8 rows: what changes, what does not, and what is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from monochord.models import LoadError
from monochord.models.shipped import initialised, load_shipped, read_weights, save_shipped, write_weights

SHAPES = [(64, 64), (100, 41), (8, 32, 64), (64, 32, 3, 3), (320, 16, 4), (64, 4096)]


def config(**changes):
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    given = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    return LlamaConfig(**{**given, "architectures": ["LlamaForCausalLM"], **changes})


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 99), size=st.floats(1e-3, 1e3))
def test_every_entry_is_within_half_a_step_of_its_row(shape, seed, size, tmp_path_factory):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    value[0] = 0
    file = tmp_path_factory.mktemp("net") / "w.safetensors"
    write_weights({"w": value}, file)
    back = read_weights(file)["w"]
    dims = (-1,) if shape[-1] >= 16 else tuple(range(1, value.ndim))
    step = value.abs().amax(dims, keepdim=True) / 127
    assert back.shape == value.shape and back.dtype == torch.float32
    assert ((back - value).abs() <= 0.57 * step + 1e-9).all()
    assert not back[0].any() and (back - value).norm() < 0.02 * value.norm()
    assert file.stat().st_size < 1.1 * value.numel() + 2000


def test_vectors_and_small_matrices_stay_exact(tmp_path):
    state = {"norm": torch.randn(5000), "gate": torch.randn(8, 128), "count": torch.tensor(3)}
    write_weights(state, tmp_path / "w.safetensors")
    back = read_weights(tmp_path / "w.safetensors")
    assert set(back) == set(state) and all(torch.equal(back[name], value) for name, value in state.items())


def test_storing_again_changes_nothing(tmp_path):
    write_weights({"w": torch.randn(100, 100)}, tmp_path / "a.safetensors")
    once = read_weights(tmp_path / "a.safetensors")
    write_weights(once, tmp_path / "b.safetensors")
    assert torch.allclose(read_weights(tmp_path / "b.safetensors")["w"], once["w"], rtol=2e-3, atol=0)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="do not fit int8"):
        write_weights({"w": torch.full((64, 64), 1e9)}, tmp_path / "w.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LoadError, match=r"broken.*install the package again"):
        read_weights(tmp_path / "broken.safetensors")
    save_file({"w.scale": torch.ones(3, 1)}, tmp_path / "alone.safetensors")
    with pytest.raises(LoadError, match="a scale without its matrix, w"):
        read_weights(tmp_path / "alone.safetensors")


def test_initialisation_is_the_seeds_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, again, other = initialised(config(), 1), initialised(config(), 1), initialised(config(), 2)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, again, other)), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or (not torch.equal(a, c) and abs(a.std().item() - 0.02) < 0.002), name


@pytest.fixture
def folder(tmp_path):
    model = initialised(config(), 3)
    states = {}
    for step in (10, 100):
        with torch.no_grad():
            for value in model.parameters():
                value += 0.1
        states[step] = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_shipped(config(), states, tmp_path / "net", seed=3, steps=[1, 10, 100])
    return tmp_path / "net"


def test_checkpoints_come_back_by_number_and_name(folder):
    first, last, init = (load_shipped(folder, None, checkpoint=c) for c in (1, "final", "init"))
    assert type(last).__name__ == "LlamaForCausalLM" and last.lm_head.weight is last.model.embed_tokens.weight
    for net, added in ((first, 0.1), (last, 0.2)):
        for (name, value), start in zip(net.named_parameters(), init.parameters(), strict=True):
            assert torch.allclose(value, start + added, atol=4e-3), name
    assert torch.equal(load_shipped(folder, None, checkpoint=-1).model.norm.weight, last.model.norm.weight)
    assert load_shipped(folder, torch.bfloat16).dtype == torch.bfloat16
    assert first.name_or_path == "net"


def test_other_checkpoints_are_refused(folder):
    with pytest.raises(LoadError, match=r"without checkpoint 0: there are 1, 2 and 'init'.*--keep-all"):
        load_shipped(folder, None, checkpoint=0)
    with pytest.raises(LoadError, match=r"no checkpoint 3: use 0 to 2, 'final' or 'init'"):
        load_shipped(folder, None, checkpoint=3)
    with pytest.raises(LoadError, match="no checkpoint 'best'"):
        load_shipped(folder, None, checkpoint="best")


def test_weights_of_another_net_are_refused(folder):
    stored = json.loads((folder / "config.json").read_text())
    stored["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(LoadError, match=r"net: 9 weights missing or too many, first model\.layers\.1"):
        load_shipped(folder, None)
    file = folder / "step-100.safetensors"
    half = {name: value for name, value in load_file(file).items() if "layers.0.mlp" not in name}
    save_file(half, file)
    with pytest.raises(LoadError, match=r"weights missing or too many"):
        load_shipped(folder, None)
