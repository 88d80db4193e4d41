"""Methods that choose among the weights: what they choose, and that nothing else moves."""

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.adapt.lora import LoRA
from monochord.adapt.mask_tuning import GradientDrop, Mask, MaskNorm, MaskTuning, agreement
from monochord.adapt.random_parameters import RandomParameters
from monochord.adapt.sara import Progressive, SaRA, importance_curve
from monochord.adapt.split import Split, owners, unsplit
from monochord.adapt.spt import SPT
from monochord.core.changes import SparseChange
from monochord.core.fit import fit
from monochord.core.objective import Loss, Objective
from monochord.core.registry import build
from monochord.core.sensitivity import sensitivity
from monochord.core.sparse import draw_positions, weights_at
from monochord.core.tuner import Tuned
from monochord.objectives.consistency import Consistency
from monochord.objectives.kl_anchor import KLAnchor
from monochord.objectives.nuclear_norm import NuclearNorm
from monochord.testing import check_tuner, check_update

MODELS = ("llama", "gpt2", "bert", "vit", "convnext", "unet", "mamba", "mixtral")
TUNERS = {
    "random": lambda sites: RandomParameters(n=500, sites=sites),
    "random rows": lambda sites: RandomParameters(n=500, unit="row", sites=sites),
    "random tensors": lambda sites: RandomParameters(n=3000, unit="tensor", sites=sites),
    "sara": lambda sites: SaRA(fraction=0.2, sites=sites),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tuner", TUNERS)
def test_conformance(tuner, name):
    sites = "**.weight" if name == "unet" else "blocks.**.weight"  # a tied embedding changes in one of its uses
    check_tuner(lambda: TUNERS[tuner](sites), zoo.build(name), zoo.batch(name))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_masks_and_split_adapters_conform(name):
    model, batch = zoo.build(name), zoo.batch(name)
    check_tuner(lambda: MaskTuning(init=5.5e-3), model, batch)  # so near that a few steps switch weights off
    check_tuner(lambda: Split("bottleneck-adapter(bottleneck=4)", parts=2), model, batch)
    check_tuner(lambda: Split("lora(rank=2)", parts=2), model, batch)


def test_random_parameters_are_exactly_as_many_and_the_same_for_a_seed():
    model = zoo.build("llama")
    for n in (1, 37, 5000):
        picks = []
        for seed in (0, 0, 1):
            with RandomParameters(n=n).attach(model, seed=seed) as tuned:
                assert tuned.n_trainable == n
                picks.append({str(s): c.indices.tolist() for s, c in tuned.placements})
                assert all(len(set(p)) == len(p) for p in picks[-1].values())
        assert picks[0] == picks[1] and (n < 30 or picks[0] != picks[2])
    with LoRA(rank=2).attach(model) as lora:
        n = lora.n_trainable
    with RandomParameters(like="lora(rank=2)").attach(model) as tuned:
        assert tuned.n_trainable == n
    with RandomParameters(n=4000, unit="tensor").attach(model) as tuned:
        left = 4000 - tuned.n_trainable
        taken = {s.path for s, _ in tuned.placements}
        others = [p.numel() for name, p in model.named_parameters() if name not in taken and "monochord" not in name]
        assert 0 <= left < min(others)  # no tensor left out would still fit
    with RandomParameters(n=6000, unit="tensor", pools="both").attach(model) as tuned:
        kinds = {type(c).__name__ for _, c in tuned.placements}
        assert "Unfrozen" in kinds and kinds & {"LowRank", "Bottleneck", "Prompt"} and tuned.n_trainable <= 6000
    with pytest.raises(ValueError, match="give one of n, fraction and like"):
        RandomParameters(n=3, fraction=0.1).attach(model)
    with pytest.raises(ValueError, match="n=99999999 must be from 1 to"):
        RandomParameters(n=99_999_999).attach(model)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 99))
def test_positions_are_distinct_and_exactly_as_many(sizes, share, seed):
    named = {str(i): size for i, size in enumerate(sizes)}
    n = round(share * sum(sizes))
    found = draw_positions(named, n, Generator().manual_seed(seed))
    assert sum(map(len, found.values())) == n
    for name, positions in found.items():
        assert positions.tolist() == sorted(set(positions.tolist())) and (positions < named[name]).all()


def test_positions_are_uniform():
    counts = torch.zeros(10)
    for seed in range(2000):
        found = draw_positions({"a": 4, "b": 6}, 3, Generator().manual_seed(seed))
        counts[found["a"]] += 1
        counts[found["b"] + 4] += 1
    assert ((counts - 600) ** 2 / 600).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_all_parameters_by_coordinates_is_full_tuning():
    model = zoo.build("llama")
    batch, ends = zoo.batch("llama") | {"labels": zoo.batch("llama")["input_ids"]}, []
    for tuner in ("full", "random"):
        own = copy.deepcopy(model)
        if tuner == "random":
            RandomParameters(fraction=1.0).attach(own)
        fit(own, [batch], steps=3, lr=1e-3, progress=False)
        ends.append(own(**batch).logits)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-5)


def test_a_sparse_gradient_is_the_dense_one_gathered_and_the_file_is_small(tmp_path):
    model, batch = zoo.build("bert"), zoo.batch("bert")
    weight = dict(model.named_parameters())["encoder.layer.0.intermediate.dense.weight"]
    model(**batch).last_hidden_state.square().sum().backward()
    dense = weight.grad.clone()
    with RandomParameters(n=100, sites="blocks.0.mlp.up.weight").attach(model) as tuned:
        model(**batch).last_hidden_state.square().sum().backward()
        change = tuned.placements[0][1]
        torch.testing.assert_close(change.values.grad, dense.flatten()[change.indices])
        tuned.save(tmp_path / "a")
        assert (tmp_path / "a/tensors.safetensors").stat().st_size < 100 * 8 + 2000


def test_sensitivity_is_the_sum_of_squared_batch_gradients_and_of_examples():
    model = zoo.build("llama")
    batches = [{"input_ids": torch.arange(i, i + 16).reshape(2, 8)} for i in (3, 20)]
    batches = [{**b, "labels": b["input_ids"]} for b in batches]
    scores = sensitivity(model, batches, sites="blocks.**.weight")
    fisher = sensitivity(model, batches, sites="blocks.**.weight", score="fisher")
    name = "model.layers.1.mlp.up_proj.weight"
    weight, squared, single = model.get_parameter(name), 0, 0
    for batch in batches:
        squared += torch.autograd.grad(model(**batch).loss, weight)[0].square()
        for i in range(2):
            one = {k: v[i : i + 1] for k, v in batch.items()}
            single += torch.autograd.grad(model(**one).loss, weight)[0].square()
    torch.testing.assert_close(scores[name], squared, rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(fisher[name], single, rtol=1e-4, atol=1e-10)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("module", ["lora", "adapter"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "vit"])
def test_spt_spends_its_budget_and_conforms(name, module):
    model, batch = zoo.build(name), zoo.batch(name)
    batch = batch if "pixel_values" in batch else batch | {"labels": batch["input_ids"]}
    scores = {n: torch.rand(p.shape, generator=Generator().manual_seed(i)) ** 8 / (i + 1)
              for i, (n, p) in enumerate(model.named_parameters())}  # fmt: skip
    tuner = SPT.for_budget(model, scores, 600, rank=1, module=module, alpha=1.5)
    with tuner.attach(model) as tuned:
        assert tuner.modules and tuner.entries
        assert 0.99 * 600 <= tuned.n_trainable <= 600
    check_tuner(lambda: tuner, model, zoo.batch(name))


def test_spt_loads_without_being_told_its_entries(tmp_path):
    model, batch = zoo.build("gpt2"), zoo.batch("gpt2")
    scores = {n: torch.rand(p.shape) for n, p in model.named_parameters()}
    with SPT.for_budget(model, scores, 900, rank=1).attach(model) as tuned:
        with torch.no_grad():
            for p in tuned.parameters():
                p.add_(0.1)
        before = model(**batch).logits
        tuned.save(tmp_path / "a")
    with Tuned.load(model, tmp_path / "a"):
        assert torch.equal(model(**batch).logits, before)
    with pytest.raises(ValueError, match="nothing says what is sensitive"):
        SPT().attach(model)


def test_sara_takes_the_smallest_and_freezes_what_has_grown():
    model = zoo.build("unet")
    sizes = torch.cat([p.detach().abs().flatten() for s in weights_at(model, "**").values()
                       for p in [model.get_parameter(s.path)]])  # fmt: skip
    with SaRA(fraction=0.3).attach(model) as tuned:
        assert tuned.n_trainable == pytest.approx(0.3 * len(sizes), abs=2 + int((sizes == 0).sum()))
    model = zoo.build("llama")
    batch = zoo.batch("llama") | {"labels": zoo.batch("llama")["input_ids"]}
    with SaRA(threshold=1e-2, sites="blocks.**.weight").attach(model) as tuned:
        weights = {n: p.detach() for n, p in model.named_parameters()}
        half, mark = {}, Progressive(tuned, at=0.5)

        class Look(Progressive):
            def on_step(self, run):
                if run.step == 4:
                    half.update({id(c): c.values.detach().clone() for _, c in tuned.placements})

        fit(model, [batch], steps=8, lr=5e-3, callbacks=[mark, Look(tuned)], progress=False)
        grown = still = 0
        for site, change in tuned.placements:
            base = weights[f"{site.module}.parametrizations.weight.original"].flatten()[change.indices]
            past = (base + half[id(change)]).abs() >= 1e-2
            assert torch.equal(change.frozen, past)
            assert torch.equal(change.values[past], half[id(change)][past])
            moved = change.values != half[id(change)]
            grown, still = grown + int(past.sum()), still + int((moved & ~past).sum())
        assert grown > 50 and still > 50


def test_importance_curve_leaves_the_model_alone():
    model = zoo.build("vit")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    count = sum(p.numel() for p in before.values())
    zeros = importance_curve(model, lambda m: float(sum((p == 0).sum() for p in m.parameters())), (0.0, 0.25, 1.0))
    assert zeros[1][1] >= 0.25 * count - 1 and zeros[2][1] == count
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="order='x' is unknown"):
        importance_curve(model, lambda m: 0.0, order="x")


def test_the_nuclear_norm_has_the_gradient_of_its_singular_vectors():
    model = nn.Sequential(nn.Linear(9, 8, bias=False))
    with SaRA(fraction=0.5, sites="0.weight").attach(model) as tuned:
        norm = NuclearNorm(tuned, weight=2.0, least=4)
        change = tuned.placements[0][1]
        norm(model, {"input": torch.ones(1, 9)}).total.backward()
        matrix = norm.matrix(*norm.matrices[0]).detach()
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        expected = 2 * (left @ right).flatten()[change.indices]
        torch.testing.assert_close(change.values.grad, expected, atol=1e-5, rtol=1e-4)
        assert int((matrix != 0).sum()) == 36
        with pytest.raises(ValueError, match="lower least"):
            NuclearNorm(tuned)


def test_masks_switch_exactly_and_are_saved_as_bits(tmp_path):
    model, batch = zoo.build("llama"), zoo.batch("llama")
    with MaskTuning().attach(model) as tuned:
        site, mask = tuned.placements[0]
        weight = model.get_submodule(site.module).parametrizations.weight.original.detach()
        with torch.no_grad():
            mask.scores[3, 5] = 4e-3
        assert int((mask(weight) != weight).sum()) == 1 and mask(weight)[3, 5] == 0
        with torch.no_grad():
            for _, change in tuned.placements:
                change.scores.uniform_(0, 1e-2)
        before = model(**batch).logits
        tuned.save(tmp_path / "m")
        size = (tmp_path / "m/tensors.safetensors").stat().st_size
        assert size < sum(c.scores.numel() for _, c in tuned.placements) / 8 + 4000
        delta = tuned.delta()
        assert torch.equal(delta[site.path].dense(), mask(weight) - weight)
        with pytest.raises(ValueError, match="must be above threshold"):
            MaskTuning(init=1e-3).plan(model, Generator()).__next__()
    with Tuned.load(model, tmp_path / "m"):
        assert torch.equal(model(**batch).logits, before)


def test_the_scores_gradient_is_that_of_a_float_mask_and_their_norm_pulls():
    weight, mask = torch.randn(4, 5), Mask((4, 5))
    soft = torch.ones(4, 5, requires_grad=True)
    goal = torch.randn(4, 5)
    (mask(weight) * goal).sum().backward()
    (weight * soft * goal).sum().backward()
    torch.testing.assert_close(mask.scores.grad, soft.grad)
    model = zoo.build("vit")
    with MaskTuning().attach(model) as tuned:
        loss = MaskNorm(tuned, 3.0)(model, zoo.batch("vit"))
        count = [c.scores.numel() for _, c in tuned.placements]
        assert float(loss.total.detach()) == pytest.approx(3 * sum(1e-2 * c**0.5 for c in count), rel=1e-5)


def test_gradients_at_odds_are_dropped_as_often_as_the_rule_says():
    g, r = torch.ones(200_000), torch.full((200_000,), -10.0)
    assert float(agreement(g, r).mean()) == pytest.approx(0.5 * (1 + (1 - 10) / 11), abs=1e-6)
    assert agreement(g, g).eq(1).all() and agreement(g, 0.1 * r).eq(0.5).all()
    model = zoo.build("bert")
    batch = zoo.batch("bert")
    with MaskTuning().attach(model) as tuned:
        first = {}
        own = _Push(1.0)
        for name, pull, strength in (("same", 3.0, 1.0), ("odd", -10.0, 1.0), ("off", -10.0, 0.0)):
            update = GradientDrop(_Push(pull), strength=strength, lr=0.0)
            update.setup(model)
            update.before_step = _then(update.before_step, lambda m, n=name: first.update({n: _grads(tuned)}))
            update.step(model, batch, own)
            first[f"{name} dropped"] = update.dropped
        assert first["same dropped"] == 0 and torch.equal(first["same"], first["off"])
        assert first["odd dropped"] == pytest.approx(1 - 0.0909, abs=0.02)
        assert float((first["odd"] == 0).float().mean()) == pytest.approx(first["odd dropped"], abs=1e-6)
        check_update(lambda: GradientDrop(KLAnchor(tuned, mask="all"), lr=1e-3), model, batch, _Push(1.0))


class _Push(Objective):
    """A linear pull on all masks."""

    def __init__(self, size):
        self.size = size

    def loss(self, model, batch, step):
        scores = [m.scores for m in model.modules() if isinstance(m, Mask)]
        return Loss(self.size * sum(s.sum() for s in scores) + 0 * model(**batch).last_hidden_state.sum())


def _then(first, second):
    def both(model):
        first(model)
        second(model)

    return both


def _grads(tuned):
    return torch.cat([p.grad.flatten().clone() for p in tuned.parameters()])


@pytest.mark.parametrize("split", ["all", "row", "column"])
def test_parts_cover_every_entry_once(split):
    owner = owners((6, 12), 4, split, Generator().manual_seed(0))
    counts = torch.stack([(owner == i) for i in range(4)])
    assert counts.sum(0).eq(1).all()
    axis = {"all": (1, 2), "row": 2, "column": 1}[split]
    sizes = counts.sum(axis)
    assert sizes.max() - sizes.min() <= 1


def test_parts_train_only_what_they_own_and_merge_to_the_mean():
    model, batch = zoo.build("bert"), zoo.batch("bert")
    with Split("bottleneck-adapter(bottleneck=8)", parts=4, share="none").attach(model) as tuned:
        change = tuned.placements[0][1]
        part = change.parametrizations.down[0]
        initial = part.initial.clone()
        fit(model, [batch], _Norm(), steps=12, lr=1e-2, progress=False)
        values = change.parametrizations.down.original.detach()
        change.train()
        used = []
        for i in range(4):
            part.draw.active = i
            expert = change.down.detach()
            assert torch.equal(expert[part.owner != i], initial[part.owner != i])
            used.append(expert)
        change.eval()
        torch.testing.assert_close(change.down.detach(), torch.stack(used).mean(0), atol=1e-7, rtol=0)
        assert not torch.equal(values, initial)
        before = model.eval()(**batch).last_hidden_state
        unsplit(tuned)
        with BottleneckAdapter(bottleneck=8).attach(zoo.build("bert")) as plain:
            assert tuned.n_trainable == plain.n_trainable
        torch.testing.assert_close(model(**batch).last_hidden_state, before)


class _Norm(Objective):
    def loss(self, model, batch, step):
        return Loss(model(**batch).last_hidden_state.square().mean())


def test_one_part_is_the_plain_adapter_bit_for_bit():
    ends = []
    for spec in ("bottleneck-adapter(bottleneck=4)", Split("bottleneck-adapter(bottleneck=4)", parts=1)):
        model = zoo.build("bert")
        with build(spec).attach(model, seed=3):
            fit(model, [zoo.batch("bert")], _Norm(), steps=4, lr=1e-2, progress=False)
            ends.append(model.eval()(**zoo.batch("bert")).last_hidden_state.detach())
    assert torch.equal(ends[0], ends[1])


def test_parts_are_drawn_uniformly():
    model = zoo.build("bert")
    with Split("bottleneck-adapter(bottleneck=4)", parts=3, share="none").attach(model) as tuned:
        change = tuned.placements[0][1].train()
        torch.manual_seed(0)
        counts = torch.zeros(3, 3)
        for _ in range(1800):
            change(torch.zeros(1, 32))
            counts[change.parametrizations.down[0].draw.active, change.parametrizations.up[0].draw.active] += 1
        assert ((counts - 200) ** 2 / 200).sum() < 26.1  # chi-square with 8 degrees of freedom, p = 0.001


def test_consistency_is_nought_without_chance_and_symmetric_with_it():
    model, batch = zoo.build("llama"), zoo.batch("llama")
    assert float(Consistency()(model.eval(), batch).total) == pytest.approx(0, abs=1e-7)
    with LoRA(rank=2, dropout=0.5).attach(model) as tuned:
        with torch.no_grad():
            for p in tuned.parameters():
                p.normal_(generator=Generator().manual_seed(0))
        model.train()
        assert float(Consistency(2.0)(model, batch).total.detach()) > 1e-4


def test_sparse_change_without_entries_left_out():
    change = SparseChange((3, 4), torch.tensor([5]), freezable=True)
    with torch.no_grad():
        change.values.fill_(2.0)
    assert change(torch.zeros(3, 4))[1, 1] == 2 and change.delta()[1, 1] == 2
