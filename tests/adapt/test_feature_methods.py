"""Methods on features and at layers: convolution adapters, noisy-model tuning, ensembles of layers."""

import math

import numpy as np
import pytest
import torch
import zoo
from torch import Generator, nn

from monochord.adapt.conformer_adapter import ConformerAdapter
from monochord.adapt.levi import LayerEnsemble, PerLayer, feature_cache, pooled_states
from monochord.adapt.lora import LoRA
from monochord.adapt.nmtune import NMTune, NMTuneTerms, consistency, covariance, dominance, spectrum
from monochord.core.capture import capture
from monochord.core.fit import fit
from monochord.core.memory import SavedActivations
from monochord.models import Classifier
from monochord.objectives import CrossEntropy
from monochord.testing import check_tuner


def classifier():
    return Classifier(zoo.build("bert"), 3)


BATCH = {**zoo.text_batch(), "labels": torch.tensor([0, 2])}


@pytest.mark.parametrize("name", ["llama", "bert", "vit", "ast"])
def test_convolution_adapters_conform(name):
    model, batch = zoo.build(name), zoo.batch(name)
    check_tuner(lambda: ConformerAdapter(reduction=8, kernel=5), model, batch)
    check_tuner(lambda: ConformerAdapter(reduction=8, kernel=5, parallel=False, pre_norm=True), model, batch)


def test_convolution_adapters_count_and_mind_causality():
    model, batch = zoo.build("llama"), zoo.batch("llama")
    with ConformerAdapter(reduction=8, kernel=5).attach(model) as tuned:
        d, r, k = 32, 4, 5
        assert tuned.n_trainable == 2 * (2 * r * d + 2 * r + r * k + 2 * r + r * d + d)
        with torch.no_grad():
            for p in tuned.parameters():
                p.normal_(generator=Generator().manual_seed(0))
        model.eval()
        before = model(**batch).logits
        ids = batch["input_ids"].clone()
        ids[:, -1] = 3
        after = model(**{**batch, "input_ids": ids}).logits
        torch.testing.assert_close(after[:, :-1], before[:, :-1])
        assert not torch.allclose(after[:, -1], before[:, -1])
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        ConformerAdapter(kernel=4).attach(model)


def test_batch_norms_of_adapters_learn_and_those_of_the_model_stand_still():
    model = zoo.build("vit")
    with ConformerAdapter(reduction=8, kernel=3).attach(model) as tuned:
        norm = tuned.placements[0][1].batch_norm
        model.train()
        model(**zoo.batch("vit"))
        assert norm.num_batches_tracked == 1 and norm.running_mean.abs().sum() > 0
        model.eval()
        model(**zoo.batch("vit"))
        assert norm.num_batches_tracked == 1


def test_noisy_model_tuning_conforms_and_starts_as_a_probe():
    model = classifier()
    check_tuner(lambda: NMTune(ratio=2), model, zoo.text_batch())
    plain = model.eval()(**zoo.text_batch()).logits
    with NMTune(ratio=2, gain=1.0).attach(model):
        assert not torch.allclose(model(**zoo.text_batch()).logits, plain)


def test_the_terms_are_what_they_say():
    z = torch.randn(40, 6, dtype=torch.float64, generator=Generator().manual_seed(0))
    matrix = np.cov(z.numpy().T)
    off = matrix - np.diag(np.diag(matrix))
    assert float(covariance(z)) == pytest.approx((off**2).sum() / 6, abs=1e-6)
    white = torch.linalg.qr(z - z.mean(0))[0]
    assert float(covariance(white)) == pytest.approx(0, abs=1e-12)
    assert float(consistency(z, 3 * z)) == pytest.approx(0, abs=1e-12)
    one = torch.outer(torch.rand(40).double() + 0.1, torch.randn(6).double())
    assert float(dominance(one, 1)) == pytest.approx(1)


def test_spectra_are_bounded_and_turn_with_the_features():
    equal = torch.cat([torch.eye(8)] * 3)
    assert spectrum(equal)["sve"] == pytest.approx(math.log(8))
    one = torch.outer(torch.rand(20) + 0.1, torch.randn(8))
    assert spectrum(one)["lsvr"] == pytest.approx(0, abs=1e-6) and spectrum(one)["sve"] == pytest.approx(0, abs=1e-4)
    x = torch.randn(50, 8, generator=Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=Generator().manual_seed(1)))[0]
    for key, value in spectrum(x).items():
        assert spectrum(2.5 * x @ turn)[key] == pytest.approx(value, abs=1e-5)


def test_terms_train_the_network_and_leave_the_model_as_it_is():
    model = classifier()
    before = {n: v.clone() for n, v in model.backbone.state_dict().items()}
    with NMTune(ratio=2, gain=1.0).attach(model) as tuned:
        history = fit(model, [BATCH], CrossEntropy() + NMTuneTerms(tuned), steps=8, lr=1e-2, progress=False)
        assert history.losses[-1] < history.losses[0]
        assert {"consistency", "covariance", "dominance"} <= history.steps[0].keys()
    assert all(torch.equal(v, before[n]) for n, v in model.backbone.state_dict().items())
    with pytest.raises(ValueError, match="needs an attached NMTune"), ConformerAdapter().attach(model) as other:
        NMTuneTerms(other)


class _Side(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.EmbeddingBag(64, width)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


def test_an_ensemble_reads_layers_without_a_graph_and_averages_heads():
    model = zoo.build("bert")
    before = {n: v.clone() for n, v in model.state_dict().items()}
    ensemble = LayerEnsemble(model, "blocks.*:out", 3, side=_Side(5), side_width=5)
    trained = [p for p in ensemble.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 64 * 5 + 2 * ((32 + 5) * 3 + 3)
    with SavedActivations(model) as saved:
        layers = ensemble.layers(**zoo.text_batch())
    assert all(name == "" for name in saved.by_module)  # nothing is kept by the pretrained model
    torch.testing.assert_close(ensemble(**zoo.text_batch()), layers.mean(0))
    fit(ensemble, [BATCH], PerLayer(), steps=5, lr=1e-2, progress=False)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    with capture(model, "blocks.1:out") as acts:
        model(**zoo.text_batch())
    mask = zoo.text_batch()["attention_mask"]
    mean = (acts["blocks.1:out"] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(pooled_states(model, ["blocks.1:out"], zoo.text_batch())[0], mean)


def test_one_layer_without_a_side_is_the_usual_head_and_a_cache_is_the_same():
    model = zoo.build("bert").eval()
    ensemble = LayerEnsemble(model, "blocks.1:out", 3)
    cached = feature_cache(model, "blocks.1:out", [zoo.text_batch()])
    torch.testing.assert_close(ensemble(**zoo.text_batch()), ensemble.heads[0](cached))
    torch.testing.assert_close(ensemble(features=cached), ensemble(**zoo.text_batch()))


def test_maps_are_pooled_in_cells_and_norms_come_before_heads():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)).eval()
    ensemble = LayerEnsemble(model, "blocks.*:out", 3, cells=2, normalised=True)
    assert ensemble.widths == [16, 24] and ensemble.norms[1].weight.shape == (24,)
    x = torch.randn(5, 3, 9, 9, generator=Generator().manual_seed(0))
    cached = feature_cache(model, "blocks.*:out", [{"input": x}], cells=2)
    torch.testing.assert_close(ensemble(features=cached), ensemble(input=x))
    corner = model[0](x)[:, 0, :4, :4].mean((1, 2))
    torch.testing.assert_close(cached[:, 0], corner)
    assert pooled_states(model, ["blocks.1:out"], {"input": x})[0].shape == (5, 6)
    with pytest.raises(ValueError, match="cells=2 is for maps"):
        pooled_states(zoo.build("bert"), ["blocks.1:out"], zoo.text_batch(), 2)


def test_a_model_that_is_to_train_trains_with_the_heads():
    model = zoo.build("bert").requires_grad_(False)
    with LoRA(rank=2).attach(model) as tuned:
        ensemble = LayerEnsemble(model, "blocks.*:out", 3, train_model=True)
        before = [p.clone() for p in tuned.parameters()]
        fit(ensemble, [BATCH], PerLayer(), steps=2, lr=1e-2, progress=False)
        assert any(not torch.equal(p, old) for p, old in zip(tuned.parameters(), before, strict=True))


def test_a_view_with_zero_weights_has_no_say():
    model = zoo.build("bert").eval()
    ensemble = LayerEnsemble(model, "blocks.*:out", 2, side=_Side(4), side_width=4, combine="learned")
    with torch.no_grad():
        for head in ensemble.heads:
            head.weight[:, :32] = 0
    out = ensemble(**zoo.text_batch())
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.add_(1.0)
    torch.testing.assert_close(ensemble(**zoo.text_batch()), out)
    with pytest.raises(ValueError, match="combine='x' is unknown"):
        LayerEnsemble(model, "blocks.*:out", 2, combine="x")
    with pytest.raises(ValueError, match="give side and side_width together"):
        LayerEnsemble(model, "blocks.*:out", 2, side=_Side(4))
