"""What papers' methods are tried on, and the fair way to try them: each takes the best of a few learning rates.

    problem = classes("fashion-vit", mc.data("emoji"), seed=trial.seed, train=600, validation=200, test=400)
    tried = problem.best(lambda: LoRA(rank=4), rates=(1e-3, 3e-3, 1e-2), steps=200)
    tried.score, tried.rate, tried.trained

The rate is chosen on the validation rows, the score is of the test rows, and every method sees the same batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from monochord.data import Batches, DataError, Dataset, Split

if TYPE_CHECKING:
    from torch import nn

    from monochord.core.objective import Objective
    from monochord.core.tuner import Tuned, Tuner

Batch = dict[str, Any]
HEADS = ("head.", "classifier.")


@dataclass
class Tried:
    """A method at its best rate: `score` on the test rows, `validation`, how many numbers it `trained` (without the
    head), and the `model` as tuned, with `tuned` in place."""

    score: float
    validation: float
    rate: float
    trained: int
    model: nn.Module
    tuned: Tuned | None
    losses: list[float] = field(default_factory=list)

    def measures(self, prefix: str = "") -> dict[str, float]:
        """The figures, as an arm returns them."""
        return {f"{prefix}{name}": float(getattr(self, name)) for name in ("score", "validation", "rate", "trained")}


@dataclass
class Problem:
    """`model()` is a fresh copy with its head; `score(model, batches)` is better when higher.

    `train` are the rows to learn from, ready to be batched; `validation` and `test` are batches.
    """

    model: Callable[[], nn.Module]
    train: Split
    validation: Sequence[Batch]
    test: Sequence[Batch]
    objective: Objective
    score: Callable[[nn.Module, Sequence[Batch]], float]
    processor: Any = None
    max_length: int = 128
    seed: int = 0

    def batches(self, steps: int, batch_size: int = 16) -> Batches:
        """The training batches, the same for every method of this seed."""
        return Batches(self.train, self.processor, batch_size, max_length=self.max_length, seed=self.seed, steps=steps)

    def best(
        self,
        make: Callable[[], Tuner | None],
        rates: Sequence[float],
        steps: int,
        *,
        batch_size: int = 16,
        objective: Objective | None = None,
        head_rate: float = 5e-3,
        train_head: bool = True,
        before: Callable[[nn.Module], None] | None = None,
        **options: Any,
    ) -> Tried:
        """`make()` attached to a fresh model and trained at each rate; what the best on the validation rows gives.

        A head, where the model has one, trains beside it at `head_rate` for every method. `make` may return None: then
        the head alone trains. `before(model)` may set the model up, before the tuner is attached. `options` go to `fit`
        (`update` as a function of the rate).
        """
        runs = (
            self._run(make, rate, steps, batch_size, objective, head_rate, train_head, before, dict(options))
            for rate in rates
        )
        return max(runs, key=lambda tried: tried.validation)

    def _run(
        self,
        make: Callable[[], Tuner | None],
        rate: float,
        steps: int,
        batch_size: int,
        objective: Objective | None,
        head_rate: float,
        train_head: bool,
        before: Callable[[nn.Module], None] | None,
        options: dict[str, Any],
    ) -> Tried:
        from monochord.core.fit import fit

        model = self.model()
        if before is not None:
            before(model)
        tuner = make()
        model.requires_grad_(False)
        tuned = None if tuner is None else tuner.attach(model, seed=self.seed)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        head = [p for name, p in model.named_parameters() if train_head and name.startswith(HEADS)]
        trained -= sum(p.numel() for p in head if p.requires_grad)
        for parameter in head:
            parameter.requires_grad_(True)
        update = options.pop("update", None)
        defaults = {"schedule": "linear", "warmup": 0.1, "seed": self.seed, "progress": False, "device": "cpu"}
        history = fit(
            model,
            self.batches(steps, batch_size),
            objective or self.objective,
            steps=steps,
            update=gradient(rate, head, head_rate) if update is None else update(rate),
            **{**defaults, **options},
        )
        model.eval()
        scores = [self.score(model, part) for part in (self.test, self.validation)]
        return Tried(scores[0], scores[1], rate, trained, model, tuned, history.losses)


def gradient(rate: float, head: Sequence[Any] = (), head_rate: float = 5e-3, weight_decay: float = 0.0) -> Any:
    """AdamW with gradients clipped to norm 1, at `rate`; the parameters of a `head` at a rate of their own."""
    import torch

    from monochord.core.update import Gradient

    apart = {id(parameter) for parameter in head}

    def optimizer(groups: list[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        parts: list[dict[str, Any]] = []
        for group in groups:
            decay = group.get("weight_decay", weight_decay)
            for inside, own in ((False, lr), (True, head_rate)):
                chosen = [p for p in group["params"] if (id(p) in apart) == inside]
                parts += [{"params": chosen, "lr": own, "weight_decay": decay}] if chosen else []
        return torch.optim.AdamW(parts, weight_decay=0.0)

    return Gradient(optimizer, rate, weight_decay, max_grad_norm=1.0)


def classes(
    name: str,
    data: Dataset,
    *,
    seed: int,
    train: int | None = None,
    validation: int = 200,
    test: int = 400,
    max_length: int = 32,
    labels: Sequence[int] | None = None,
    start: Callable[[], nn.Module] | None = None,
) -> Problem:
    """Naming the class of texts, images or sounds of `data` by the model `name`, with a new head drawn by `seed`.

    Rows are drawn by the seed, as many of each class as there are; test rows are the same for every seed. `max_length`
    is tokens of a text or pixels of a side. `labels` keeps some classes alone; `start()` gives another body than
    `name`'s own, for the same processor.
    """
    from monochord.models import Classifier, processor
    from monochord.objectives import CrossEntropy

    kept = np.arange(data.n_classes) if labels is None else np.asarray(labels)
    process = _processor(name, max_length) if "image" in data["train"] else processor(name)
    parts = {}
    for part, count in (("train", train), ("validation", validation), ("test", test)):
        parts[part] = _ready(_drawn(data[part], count, kept, 0 if part == "test" else seed), process)

    def model() -> nn.Module:
        base = start() if start is not None else copied(name)
        if hasattr(base, "classifier"):
            return _new_head(base, len(kept), seed)
        return Classifier(base, len(kept), seed=seed)

    evaluated = {
        part: list(Batches(_by_length(parts[part]), process, 50, max_length=max_length, shuffle=False))
        for part in ("validation", "test")
    }
    return Problem(
        model, parts["train"], evaluated["validation"], evaluated["test"], CrossEntropy(), accuracy, process,
        max_length, seed,
    )  # fmt: skip


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The share of rows whose class is named right."""
    import torch

    right, count = 0, 0
    with torch.inference_mode():
        for batch in batches:
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            count += len(logits)
    return right / count


def copied(name: str, **options: Any) -> nn.Module:
    """A copy of a model of the catalog, which is read once a process."""
    return copy.deepcopy(_loaded(name, tuple(sorted(options.items()))))


@cache
def _loaded(name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    from monochord.models import load

    return load(name, progress=False, **dict(options))


@cache
def _processor(name: str, side: int) -> Any:
    from monochord.models import processor

    return processor(name, size=side)


def _new_head(model: nn.Module, n_classes: int, seed: int) -> nn.Module:
    """The classifier of a shipped net replaced, at random, by one for `n_classes`."""
    import torch

    from monochord.models.classifiers import last_linear, narrowed

    narrowed(model, [str(i) for i in range(n_classes)], None)
    with torch.no_grad():
        last_linear(model).weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    return model


def _drawn(rows: Split, count: int | None, kept: np.ndarray, seed: int) -> Split:
    """`count` rows of the classes `kept`, classes in turn, their labels numbered anew."""
    labels = np.asarray(rows["label"])
    order = np.random.default_rng((seed, 11)).permutation(np.flatnonzero(np.isin(labels, kept)))
    if not len(order):
        raise DataError(f"no rows of the classes {kept.tolist()}")
    chosen = rows.take(order)
    chosen = chosen if count is None or count >= len(order) else chosen.first(count)
    renamed = np.searchsorted(np.sort(kept), np.asarray(chosen["label"]))
    return Split({**{name: chosen[name] for name in chosen.columns}, "label": renamed})


def _ready(rows: Split, process: Any) -> Split:
    """Images and sounds as the model takes them, so that no epoch processes them again; texts as they are."""
    if "image" not in rows and "audio" not in rows:
        return rows
    batches = list(Batches(rows, process, 256, shuffle=False))
    made = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
    return Split({"label" if name == "labels" else name: column for name, column in made.items()})


def _by_length(rows: Split) -> Split:
    if rows.columns[0] != "text":
        return rows
    return rows.take(np.argsort([len(text) for text in rows["text"]], kind="stable"))
