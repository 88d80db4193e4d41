"""Layer-wise ensemble of different views: a frozen pretrained model and a small new one, joined at several layers.

From "LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views", February 7, 2024. At each chosen
layer the pretrained model's pooled state and the small model's output are joined, mapped and turned into a prediction;
the predictions are averaged. What the paper leaves open (weights, heads, combination) is an option here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.batches import as_batch
from monochord.core.capture import Capture, capture
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.sites import resolve, width

_COMBINATIONS = ("mean", "last", "learned")


class LayerEnsemble(nn.Module):
    """Predictions (batch, outputs) from the states of `model` at `sites`, each joined with `side(batch)`.

    `side` is a module that maps the same keyword inputs to (batch, width of its output `side_width`), or None for a
    view of the pretrained model alone. `adapter` is the map of the joined vectors to a prediction: its inner width, 0
    for a linear map. `combine` is how predictions become one: their "mean", the "last", or "learned" weights that sum
    to one. The pretrained model is frozen and runs without a graph; with `train_model=True` what has `requires_grad` in
    it (such as an attached LoRA) trains too. Maps of pixels are pooled to `cells` by `cells`; `normalised` puts a norm
    over each state. States from `feature_cache` may be given as `features`, (batch, sum of the states' widths).
    """

    def __init__(
        self,
        model: nn.Module,
        sites: str | Sequence[str],
        outputs: int,
        *,
        side: nn.Module | None = None,
        side_width: int = 0,
        adapter: int = 0,
        combine: str = "mean",
        train_model: bool = False,
        normalised: bool = False,
        cells: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if combine not in _COMBINATIONS:
            raise ValueError(f"combine={combine!r} is unknown: use one of {', '.join(_COMBINATIONS)}")
        if (side is None) != (side_width == 0):
            raise ValueError("give side and side_width together: how wide what the small model returns is")
        self._model = (model,)  # in a tuple: the pretrained model is read, not owned
        self.tuned = model if train_model else None  # unless it is to train
        self.sites = [str(site) for pattern in _each(sites) for site in resolve(model, pattern)]
        self.side, self.combine, self.train_model = side, combine, train_model
        self.cells = cells
        self.widths = [width(model, resolve(model, site)[0]) * cells**2 for site in self.sites]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(_head(size + side_width, adapter, outputs) for size in self.widths)
        self.norms = nn.ModuleList(nn.LayerNorm(size) if normalised else nn.Identity() for size in self.widths)
        self.mixture = nn.Parameter(torch.zeros(len(self.heads))) if combine == "learned" else None
        if not train_model:
            model.requires_grad_(False).eval()

    @property
    def model(self) -> nn.Module:
        """The pretrained model."""
        return self._model[0]

    def forward(self, features: Tensor | None = None, **inputs: Any) -> Tensor:
        """The combined prediction (batch, outputs)."""
        return self.combined(self.layers(features, **inputs))

    def layers(self, features: Tensor | None = None, **inputs: Any) -> Tensor:
        """The prediction of every layer, (layers, batch, outputs)."""
        inputs.pop("labels", None)
        states = torch.split(features, self.widths, -1) if features is not None else self.states(inputs)
        view = [] if self.side is None else [self.side(**inputs)]
        joined = (torch.cat([norm(s.float()), *view], -1) for norm, s in zip(self.norms, states, strict=True))
        return torch.stack([head(vectors) for head, vectors in zip(self.heads, joined, strict=True)])

    def combined(self, predictions: Tensor) -> Tensor:
        """One prediction from those of the layers."""
        if self.mixture is not None:
            return torch.einsum("l,lbo->bo", self.mixture.softmax(0), predictions)
        return predictions[-1] if self.combine == "last" else predictions.mean(0)

    def states(self, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        """The pretrained model's pooled states at the sites, (batch, d) each."""
        return pooled_states(self.model, self.sites, inputs, self.cells, graph=self.train_model)


class PerLayer(Objective):
    """The mean over layers of a loss of each layer's own prediction: joint training of a `LayerEnsemble`.

    `loss_of(prediction, labels)` is cross-entropy unless given; `weights` are one a layer, equal unless given.
    """

    def __init__(self, loss_of: Any = None, weights: Sequence[float] | None = None) -> None:
        self.loss_of, self.weights = loss_of or nn.functional.cross_entropy, weights

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        predictions = model.layers(**inputs)  # type: ignore[operator]
        losses = torch.stack([self.loss_of(prediction, labels) for prediction in predictions])
        weights = torch.ones(len(losses)) if self.weights is None else torch.tensor(self.weights)
        total = (losses * weights.to(losses)).sum() / weights.sum()
        return Loss(total, {self.name: total.item()})


def feature_cache(model: nn.Module, sites: str | Sequence[str], batches: Iterable[Any], cells: int = 1) -> Tensor:
    """The pooled states of frozen `model` over data, site after site: (examples, sum of the states' widths)."""
    names = [str(site) for pattern in _each(sites) for site in resolve(model, pattern)]
    rows = [torch.cat(pooled_states(model, names, as_batch(batch), cells), 1) for batch in batches]
    return torch.cat(rows)


def pooled_states(
    model: nn.Module, sites: Sequence[str], inputs: Mapping[str, Any], cells: int = 1, *, graph: bool = False
) -> list[Tensor]:
    """States at `sites` as (batch, d): means over real tokens, or over the pixels of a map in `cells` by `cells` parts.

    Raises `ValueError` for several cells where states are no maps.
    """
    own = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.set_grad_enabled(graph), capture(model, sites, keep_graph=graph) as states:
        model(**own)
    return [_pooled(states, site, own.get("attention_mask"), cells) for site in sites]


def _pooled(states: Capture, site: str, mask: Tensor | None, cells: int) -> Tensor:
    value: Tensor = states[site]
    if value.dim() == 4:
        return nn.functional.adaptive_avg_pool2d(value, cells).flatten(1)
    if cells != 1:
        raise ValueError(f"cells={cells} is for maps of pixels, the state at {site} is {tuple(value.shape)}")
    if value.dim() == 2:
        return value
    if mask is None or mask.shape[1] != value.shape[1]:
        return value.mean(1)
    kept = mask.unsqueeze(-1).to(value.dtype)
    return (value * kept).sum(1) / kept.sum(1).clamp(min=1)


def _head(inputs: int, inner: int, outputs: int) -> nn.Module:
    if not inner:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, inner), nn.ReLU(), nn.Linear(inner, outputs))


def _each(sites: str | Sequence[str]) -> Sequence[str]:
    return (sites,) if isinstance(sites, str) else sites
