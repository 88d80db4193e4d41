"""Weight-space arithmetic: every form of an entry obeys the algebra of its dense tensor, in memory and on
disk.
"""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from monochord.core.checkpoint import Checkpoint
from monochord.core.delta import Between, Delta, DeltaError, Dense, Entry, LowRank, Sparse, Sum
from monochord.core.storage import StorageError, fingerprint
from monochord.core.sums import add_entries

KINDS = ("dense", "lowrank", "sparse", "conv", "experts", "vector")
SHAPES = {"conv": (6, 4, 3, 2), "experts": (3, 5, 4), "vector": (9,)}


def entry(kind, seed):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    if kind == "lowrank":
        return LowRank(randn(6, 2), randn(2, 5), 0.7)
    if kind == "sparse":
        return Sparse(torch.randperm(30, generator=g)[:4].sort().values, randn(4), (6, 5))
    if kind == "conv":
        return LowRank(randn(6, 2), randn(2, 4, 3, 2))
    if kind == "experts":
        return LowRank(randn(3, 5, 2), randn(3, 2, 4), -1.5)
    return Dense(randn(*SHAPES.get(kind, (6, 5))))


matrices = st.builds(entry, st.sampled_from(["dense", "lowrank", "sparse"]), st.integers(0, 999))
deltas = st.builds(
    lambda a, kind, seed: Delta({"a": a, kind: entry(kind, seed)}),
    matrices,
    st.sampled_from(["conv", "experts", "vector"]),
    st.integers(0, 999),
)
factors = st.floats(-3, 3)


def dense(delta):
    return {name: value.dense() for name, value in delta.items()}


def same(one, other):
    """Equal as functions from every name: a missing one is zero."""
    mine, yours = dense(one), dense(other)
    for name in mine.keys() | yours.keys():
        a = mine[name] if name in mine else torch.zeros_like(yours[name])
        torch.testing.assert_close(a, yours.get(name, torch.zeros_like(a)), atol=1e-10, rtol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(deltas, deltas, deltas, factors)
def test_a_vector_space(a, b, c, k):
    same((a + b) + c, a + (b + c))
    same(a + b, b + a)
    same(k * (a + b), k * a + b * k)
    same(a - b, -(b - a))
    same((a + b) - b, a)
    same(a / 2 + a / 2, a)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(deltas, deltas, factors, st.integers(0, 99))
def test_every_form_equals_its_dense_tensor(a, b, k, seed):
    g = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(e.shape, generator=g) < 0.4 for name, e in (a + b).items()}
    total = a + k * b
    for name, value in total.items():
        mine = a[name].dense() if name in a else 0
        expected = mine + (k * b[name].dense() if name in b else 0)
        torch.testing.assert_close(value.dense(), expected, atol=1e-10, rtol=1e-10)
        masked = total.mask(masks)[name].dense()
        torch.testing.assert_close(masked, expected * masks[name], atol=1e-10, rtol=1e-10)
        assert value.norm() == pytest.approx(expected.norm().item(), abs=1e-9)
        weight = torch.ones(value.shape, dtype=torch.float64)
        value.add_to(weight, 0.3)
        torch.testing.assert_close(weight, 1 + 0.3 * expected, atol=1e-10, rtol=1e-10)
        turned = torch.ones(value.shape[::-1], dtype=torch.float64).permute(*range(len(value.shape))[::-1])
        value.add_to(turned, 0.3)
        torch.testing.assert_close(turned, weight, atol=1e-10, rtol=1e-10)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(deltas, st.integers(0, 99))
def test_masks_split_and_graft(a, seed):
    g = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(e.shape, generator=g) < 0.5 for name, e in a.items()}
    opposite = {name: ~mask for name, mask in masks.items()}
    same(a.mask(masks) + a.mask(opposite), a)
    same(a.mask(masks).mask(masks), a.mask(masks))
    same(a.graft(2 * a, masks), a + a.mask(masks))
    same(a.mask(lambda name, e: masks[name] if name == "a" else None), Delta({"a": a.mask(masks)["a"]}))
    same(a.graft(a * 3, {"a": masks["a"]}), a + 2 * a.mask({"a": masks["a"]}))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.sampled_from(["dense", "lowrank", "conv"]), st.integers(0, 99))
def test_truncation_error_is_the_discarded_singular_values(rank, kind, seed):
    whole = Delta({"w": entry(kind, seed), "bias": entry("vector", seed)})
    cut = whole.to_lowrank(rank=rank)
    values = whole["w"].svd()[1]
    assert isinstance(cut["w"], LowRank) and cut["w"].rank == min(rank, len(values))
    error = (whole["w"].dense() - cut["w"].dense()).norm().item()
    assert error == pytest.approx(values[rank:].norm().item(), abs=1e-9)
    assert cut["w"].shape == whole["w"].shape
    assert torch.equal(cut["bias"].dense(), whole["bias"].dense())


def test_energy_chooses_the_least_rank():
    values = torch.tensor([4.0, 2.0, 1.0])
    q, _ = torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    delta = Delta({"w": (q * values) @ torch.eye(3)})
    shares = values.square().cumsum(0) / values.square().sum()
    assert [delta.to_lowrank(energy=s.item() - 1e-4)["w"].rank for s in shares] == [1, 2, 3]
    assert delta.to_lowrank(energy=shares[0].item() + 1e-4)["w"].rank == 2
    with pytest.raises(ValueError, match=r"energy must be in \(0, 1\], got 2"):
        delta.to_lowrank(energy=2)
    with pytest.raises(ValueError, match="one of rank and energy"):
        delta.to_lowrank()


def test_batched_experts_truncate_one_by_one():
    experts = entry("experts", 0)
    cut = LowRank.of(experts, rank=1)
    assert cut.shape == (3, 5, 4) and cut.rank == 1
    for mine, whole in zip(cut.dense(), experts.dense(), strict=True):
        error = torch.linalg.matrix_norm(whole - mine)
        assert error.item() == pytest.approx(torch.linalg.svdvals(whole)[1].item())


def test_cheapest_forms():
    a, b = entry("lowrank", 0), entry("sparse", 1)
    wide = [LowRank(torch.randn(60, 2), torch.randn(2, 50)) for _ in range(2)]
    assert isinstance(add_entries(*wide), LowRank) and add_entries(*wide).rank == 4
    assert isinstance(add_entries(*(wide * 20)), Dense)
    assert isinstance(add_entries(b, entry("sparse", 2)), Sparse)
    small = Sparse(torch.tensor([3]), torch.ones(1), (60, 50))
    mixed = add_entries(wide[0], small)
    assert isinstance(mixed, Sum) and mixed.nbytes == wide[0].nbytes + small.nbytes
    assert isinstance(add_entries(mixed, small, wide[1]), Sum) and len(add_entries(mixed, small).parts) == 2
    assert isinstance(add_entries(a, entry("dense", 0)), Dense)
    assert isinstance(b.scaled(2), Sparse) and isinstance(a.scaled(2), LowRank)
    few, many = torch.zeros(6, 5, dtype=torch.bool), torch.ones(6, 5, dtype=torch.bool)
    few[1, 2] = True
    assert isinstance(entry("dense", 0).masked(few), Sparse) and isinstance(entry("dense", 0).masked(many), Dense)
    assert wide[0].nbytes == 4 * (60 * 2 + 2 * 50)


@pytest.mark.parametrize("kind", KINDS)
def test_random_like_keeps_kind_norm_and_rank(kind):
    whole = Delta({"w": entry(kind, 3)})
    control = whole.random_like(seed=7)
    assert type(control["w"]) is type(whole["w"]) and control["w"].shape == whole["w"].shape
    assert control["w"].norm() == pytest.approx(whole["w"].norm())
    flat = [e["w"].dense().reshape(e["w"].shape[0], -1) for e in (whole, control)]
    assert torch.linalg.matrix_rank(flat[0]) == torch.linalg.matrix_rank(flat[1]) or kind == "sparse"
    assert torch.equal(whole.random_like(seed=7)["w"].dense(), control["w"].dense())
    assert not torch.equal(whole.random_like(seed=8)["w"].dense(), control["w"].dense())
    if kind == "sparse":
        assert len(control["w"].indices) == len(whole["w"].indices)


def test_random_like_of_a_dense_matrix_of_low_rank():
    control = Delta({"w": entry("lowrank", 0).dense()}).random_like(seed=0)["w"]
    assert isinstance(control, Dense) and torch.linalg.matrix_rank(control.dense()) == 2


def test_what_changed():
    eye = torch.eye(4)
    delta = Delta({"w": LowRank(3 * eye[:, :2], eye[:2]), "b": torch.tensor([3.0, 4.0, 0, 0])})
    assert delta.norms() == pytest.approx({"w": math.sqrt(18), "b": 5})
    assert delta.relative_norms({"w": eye, "b": torch.ones(4)}) == pytest.approx({"w": math.sqrt(4.5), "b": 2.5})
    assert delta.effective_rank() == pytest.approx({"w": 2, "b": 1})
    assert delta.effective_rank("stable") == pytest.approx({"w": 2, "b": 1})
    skewed = Delta({"w": torch.diag(torch.tensor([2.0, 1, 1, 0]))})
    assert skewed.effective_rank()["w"] == pytest.approx(math.exp(1.5 * math.log(2)))
    assert skewed.effective_rank("stable")["w"] == pytest.approx(1.5)
    assert (0 * skewed).effective_rank()["w"] == 0
    assert delta.overlap(Delta({"w": eye[:, [0, 2]] @ eye[:2]}), 2)["w"] == pytest.approx(0.5)
    base = {"w": torch.diag(torch.tensor([1.0, 9, 8, 1])), "b": torch.ones(4)}
    assert delta.energy_in_top_subspace(base, 2)["w"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'entropy' or 'stable', got 'nuclear'"):
        delta.effective_rank("nuclear")


def test_scale_by_takes_a_glob():
    delta = Delta({"blocks.0.attn.weight": torch.ones(2), "blocks.1.mlp.weight": torch.ones(2)})
    scaled = delta.scale_by("blocks.*.mlp.weight", 3)
    assert torch.equal(scaled["blocks.1.mlp.weight"].dense(), torch.full((2,), 3.0))
    assert torch.equal(scaled["blocks.0.attn.weight"].dense(), torch.ones(2))
    with pytest.raises(DeltaError, match=r"no weight matches .*mpl.*; the nearest is .blocks"):
        delta.scale_by("blocks.*.mpl.weight", 3)


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(12, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.mix(self.embed(x)).relu())


def test_between_models_applies_exactly_and_restores():
    base, tuned = Net(0), Net(1)
    delta = Delta.between(base, tuned)
    assert list(delta) == ["embed.weight", "mix.weight", "mix.bias"]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with delta.applied(base):
        torch.testing.assert_close(base.state_dict(), tuned.state_dict(), atol=1e-6, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    delta.apply(base)
    with delta.removed(base):
        torch.testing.assert_close(base.state_dict(), Net(0).state_dict(), atol=1e-6, rtol=0)
    torch.testing.assert_close(base.state_dict(), tuned.state_dict(), atol=1e-6, rtol=0)


def test_equal_weights_leave_no_entry():
    base, tuned = Net(0), Net(0)
    tuned.mix.bias.data[0] += 1
    assert list(Delta.between(base, tuned)) == ["mix.bias"]


def test_half_precision_changes_are_kept_exactly():
    base, tuned = Net(0).bfloat16(), Net(1).bfloat16()
    delta = Delta.between(base, tuned)
    assert delta["mix.weight"].dtype == torch.float32
    delta.apply(base)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), tuned.parameters(), strict=True))


def test_applies_under_a_parametrization():
    base, delta = Net(0), Delta.between(Net(0), Net(1))
    parametrize.register_parametrization(base.mix, "weight", nn.Identity(), unsafe=True)
    delta.apply(base)
    torch.testing.assert_close(base.mix.weight, Net(1).mix.weight, atol=1e-6, rtol=0)


def test_another_base_is_refused(tmp_path):
    delta = Delta.between(Net(0), Net(1))
    with pytest.raises(DeltaError, match=r"taken from base .* the model is .*: pass strict=False"):
        delta.apply(Net(2))
    delta.save(tmp_path / "d.safetensors")
    with pytest.raises(DeltaError, match="strict=False"):
        Delta.load(tmp_path / "d.safetensors").apply(Net(2))
    delta.apply(Net(2), strict=False)
    (delta + Delta({"mix.bias": torch.ones(6)})).apply(Net(0))
    with pytest.raises(DeltaError, match="strict=False"):
        (delta + Delta.between(Net(2), Net(1))).apply(Net(0))


def test_misfits_are_one_clear_line_and_change_nothing():
    net = Net(0)
    for delta, line in [
        (Delta({"mix.weigth": torch.ones(6, 6)}), "has no weight 'mix.weigth'; the nearest is 'mix.weight'"),
        (
            Delta({"mix.bias": torch.ones(6), "mix.weight": torch.ones(6, 5)}),
            r"'mix.weight' is \(6, 6\) in the model",
        ),
        (Delta({"head.weight": torch.ones(12, 6), "embed.weight": torch.ones(12, 6)}), "are one tied weight"),
    ]:
        with pytest.raises(DeltaError, match=line):
            delta.apply(net)
    assert fingerprint(net) == fingerprint(Net(0))
    with pytest.raises(DeltaError, match=r"the base has no weight 'head\.bias'; the nearest is"):
        Delta.between({"mix.bias": torch.ones(2)}, {"mix.bias": torch.ones(2), "head.bias": torch.ones(2)})
    both = Delta.between({"a": torch.ones(2)}, {"a": torch.zeros(2), "b": torch.ones(2)}, strict=False)
    assert list(both) == ["a"]
    with pytest.raises(DeltaError, match=r"'w' is \(2,\) in the other delta and \(3,\)|'w' is \(2,\)"):
        Delta({"w": torch.ones(2)}) + Delta({"w": torch.ones(3)})
    with pytest.raises(DeltaError, match=r"the mask of w is \(3,\)"):
        Delta({"w": torch.ones(2)}).mask({"w": torch.ones(3)})
    with pytest.raises(KeyError, match="the nearest is 'weight'"):
        Delta({"weight": torch.ones(2)})["wieght"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_the_cheap_form_bit_for_bit(tmp_path, kind):
    sparse = Sparse(torch.tensor([3, 900]), torch.ones(2), (50, 40))
    mixed = add_entries(LowRank(torch.randn(50, 1), torch.randn(1, 40)), sparse)
    delta = Delta({"x.w": entry(kind, 0), "mixed": mixed}, base="abc")
    delta.save(tmp_path / "d.safetensors")
    loaded = Delta.load(tmp_path / "d.safetensors")
    assert list(loaded) == list(delta) and loaded.bases == {"abc"}
    for name in delta:
        assert type(loaded[name]) is type(delta[name]) and loaded[name].nbytes == delta[name].nbytes
        assert torch.equal(loaded[name].dense(), delta[name].dense())
    assert (tmp_path / "d.safetensors").stat().st_size < delta.nbytes + 2000


def test_a_file_that_is_no_delta_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(StorageError, match="is not a delta"):
        Delta.load(tmp_path / "w.safetensors")


def test_a_third_party_kind_needs_five_members(tmp_path):
    class Constant(Entry, kind="constant"):
        def __init__(self, value, rows):
            self.value, self.rows = value, rows

        shape = property(lambda self: (self.rows, self.rows))
        dtype = property(lambda self: self.value.dtype)

        def dense(self):
            return self.value.expand(self.shape)

        def tensors(self):
            return {"value": self.value}

        def settings(self):
            return {"rows": self.rows}

        @classmethod
        def build(cls, tensors, settings):
            return cls(tensors["value"], settings["rows"])

    delta = Delta({"w": Constant(torch.tensor([2.0]), 3)})
    assert delta.nbytes == 4 and delta.norms()["w"] == pytest.approx(6)
    same(delta + delta, delta * 2)
    delta.save(tmp_path / "d.safetensors")
    assert isinstance(Delta.load(tmp_path / "d.safetensors")["w"], Constant)
    del Entry.kinds["constant"]
    with pytest.raises(StorageError, match="unknown kind of entry 'constant': import the module"):
        Delta.load(tmp_path / "d.safetensors")


# Checkpoints on disk


def write_checkpoint(folder, seed, dtype=torch.bfloat16, shards=2):
    g = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (40, 8), "mix.weight": (300, 500), "mix.bias": (8,), "scalar": ()}
    tensors = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
    tensors["positions"] = torch.arange(5)
    folder.mkdir()
    names = sorted(tensors)
    table = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::shards]}, folder / file, {"format": "pt"})
        table |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (folder / "config.json").write_text('{"hidden": 8}')
    return tensors


def read_folder(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_an_expression_over_checkpoints_streams_to_the_right_numbers(tmp_path, dtype):
    base, a, b = (write_checkpoint(tmp_path / n, i, dtype) for i, n in enumerate("tab"))
    t, da, db = tmp_path / "t", Delta.between(tmp_path / "t", tmp_path / "a"), None
    db = Delta.between(str(t), tmp_path / "b")
    expression = 0.5 * da - db
    assert all(isinstance(e, Between) and len(e.terms) == 3 for e in expression.values())
    assert "positions" not in expression
    expression.apply_to_checkpoint(t, tmp_path / "out")
    out = read_folder(tmp_path / "out")
    assert out.keys() == base.keys() and torch.equal(out["positions"], base["positions"])
    for name in expression:
        exact = base[name].double() + 0.5 * (a[name].double() - base[name].double())
        exact -= b[name].double() - base[name].double()
        assert out[name].dtype == dtype
        torch.testing.assert_close(out[name], exact.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)
        torch.testing.assert_close(expression[name].dense().double(), exact - base[name].double(), atol=1e-5, rtol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in t.iterdir())
    da.apply_to_checkpoint(t, tmp_path / "same")
    assert all(torch.equal(value, a[name]) for name, value in read_folder(tmp_path / "same").items())


def test_between_entries_know_their_norm_and_save_as_dense(tmp_path):
    base, a = (write_checkpoint(tmp_path / n, i, torch.float32) for i, n in enumerate("ta"))
    delta = Delta.between(tmp_path / "t", tmp_path / "a")
    change = a["mix.weight"] - base["mix.weight"]
    assert delta["mix.weight"].norm() == pytest.approx(change.norm().item())
    mask = a["mix.weight"] > 0
    masked = delta.mask({"mix.weight": mask}) + Delta({"mix.weight": LowRank(torch.ones(300, 1), torch.ones(1, 500))})
    expected = (a["mix.weight"] - base["mix.weight"]) * mask + 1
    torch.testing.assert_close(masked["mix.weight"].dense(), expected)
    (2 * masked).save(tmp_path / "d.safetensors")
    loaded = Delta.load(tmp_path / "d.safetensors")
    assert isinstance(loaded["mix.weight"], Dense) and loaded.bases == {fingerprint(Checkpoint(tmp_path / "t"))}
    torch.testing.assert_close(loaded["mix.weight"].dense(), 2 * expected)
    loaded.apply_to_checkpoint(tmp_path / "t", tmp_path / "out", scale=0.5, max_shard_bytes=300_000)
    out = read_folder(tmp_path / "out")
    torch.testing.assert_close(out["mix.weight"], base["mix.weight"] + expected)
    assert torch.equal(out["embed.weight"], base["embed.weight"])
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3


def test_a_checkpoints_fingerprint_is_its_models(tmp_path):
    net = Net(0)
    save_file(dict(net.named_parameters()), tmp_path / "model.safetensors")
    assert (
        fingerprint(Checkpoint(tmp_path)) == fingerprint(Checkpoint(tmp_path / "model.safetensors")) == fingerprint(net)
    )
    delta = Delta.between(tmp_path, Net(1))
    delta.apply(net)
    torch.testing.assert_close(net.state_dict(), Net(1).state_dict(), atol=1e-6, rtol=0)


def test_bad_checkpoints_are_one_clear_line(tmp_path):
    write_checkpoint(tmp_path / "t", 0)
    write_checkpoint(tmp_path / "a", 1)
    delta = Delta.between(tmp_path / "t", tmp_path / "a")
    with pytest.raises(DeltaError, match="strict=False"):
        delta.apply_to_checkpoint(tmp_path / "a", tmp_path / "out")
    with pytest.raises(StorageError, match="exists: choose an empty folder"):
        delta.apply_to_checkpoint(tmp_path / "t", tmp_path / "t")
    with pytest.raises(DeltaError, match=r"no weight 'mix\.wight'; the nearest is 'mix\.weight'"):
        Delta({"mix.wight": torch.ones(2)}).apply_to_checkpoint(tmp_path / "t", tmp_path / "out")
    (tmp_path / "old").mkdir()
    torch.save({}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(StorageError, match=r"pytorch_model\.bin may be a pickle"):
        Delta.between(tmp_path / "old", tmp_path / "a")
    with pytest.raises(StorageError, match="does not exist"):
        Delta.between(tmp_path / "gone", tmp_path / "a")
    (tmp_path / "a" / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../t/x.safetensors"}}')
    with pytest.raises(StorageError, match="outside the folder"):
        Checkpoint(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.safetensors"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StorageError, match="was changed after it was opened"):
        delta.apply_to_checkpoint(tmp_path / "t", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
