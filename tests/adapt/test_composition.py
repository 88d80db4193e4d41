"""Any tuner with any update and any objective: what should move moves, and nothing else."""

import pytest
import torch
import zoo

from monochord.core.fit import fit
from monochord.core.registry import build, methods
from monochord.core.sites import SiteError
from monochord.core.zeroth_order import ZerothOrder
from monochord.models import Classifier
from monochord.objectives import CrossEntropy, KLAnchor

NEED_DATA = {"spt"}  # says so itself: a budget is spent by sensitivities
ON_FEATURE_MAPS = {"soft-hebbian"}  # of a convolutional net, by channels; tests/core/test_online.py trains it
SMALL = {  # where the defaults do not fit a model of width 32
    "dora": "dora(rank=2)", "flora": "flora(rank=2)", "intrinsic-dimension": "intrinsic-dimension(d=20)",
    "hypernetwork": "hypernetwork(hidden=(4, 8))", "mask-tuning": "mask-tuning(init=0.005001)",
    "conformer-adapter": "conformer-adapter(reduction=8, kernel=3)", "sara": "sara(sites='blocks.**.weight')",
}  # fmt: skip
BATCH = {**zoo.text_batch(), "labels": torch.tensor([0, 2])}


@pytest.mark.parametrize("name", [name for name in methods() if name not in NEED_DATA | ON_FEATURE_MAPS])
@pytest.mark.parametrize("update", ["gradient", "mezo"])
def test_every_tuner_under_either_update_and_objective(name, update):
    model = Classifier(zoo.build("bert"), 3)
    try:
        tuned = build(SMALL.get(name, name)).attach(model)
    except SiteError as error:
        pytest.fail(f"{name} finds no site on an encoder: {error}")
    own = {id(p) for p in tuned.trained} | {id(b) for _, change in tuned.placements for b in change.buffers()}
    for objective in (CrossEntropy(), CrossEntropy() + 0.1 * KLAnchor(tuned)):
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        before = {n: v.detach().clone() for n, v in state.items()}
        options = {"update": ZerothOrder(lr=1e-3)} if update == "mezo" else {"lr": 1e-3}
        history = fit(model, [BATCH], objective, steps=3, progress=False, **options)
        assert all(loss == loss for loss in history.losses)
        moved = {n for n, v in state.items() if not torch.equal(v, before[n])}
        assert moved and all(id(state[n]) in own for n in moved)
    tuned.detach()
