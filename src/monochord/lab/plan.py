"""From what a user asks of a comparison to what trials need: the task, the entrants and their learning rates."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from monochord.core.registry import build, describe, methods, parse_call, split
from monochord.data import DataError, Dataset, data, entries
from monochord.lab.preparing import kind_of, prepare
from monochord.lab.task import Settings
from monochord.lab.tasks import TASKS, AudioClassification, CausalLM, Denoising, ImageClassification, TextClassification

DEFAULT_METHODS = ("last-layer", "bitfit", "ia3", "prompt", "lora", "dora", "adapter", "half", "full")
COMMON_RATES = (1e-4, 1e-3, 1e-2)  # what fits no method of them all fits some
OWN_GRID = (1 / 3, 1.0, 3.0)  # times the `default_lr` of a method that declares one
ENOUGH_ROWS = 4000  # training rows of large sets that trials are given
_CODE = (
    "core",
    "models",
    "data",
    "objectives",
    "lab/trial.py",
    "lab/task.py",
    "lab/tasks.py",
    "lab/preparing.py",
    "lab/retention.py",
    "lab/measure.py",
)


@dataclass(frozen=True)
class Entrant:
    """One method of a comparison: `name` for people, `spec` for trials, a tuner when it is the user's object."""

    name: str
    spec: str
    tuner: Any = field(repr=False)
    given: bool  # as an object: trials get the object itself
    rates: tuple[float, ...]
    code: str  # hash of all sources its results depend on


@dataclass
class Problem:
    """The task of a comparison and what trials are given of it, made when the first trial needs it."""

    settings: Settings
    title: str
    steps: int
    dataset: Dataset | None  # the user's, read already
    own: dict[str, Any]  # the user's model and processor
    n_train: int
    notes: list[str] = field(default_factory=list)

    def fill(self, objects: dict[str, Any], retention: bool) -> None:
        """Put the data, and what retention is measured with, where the trials look for them."""
        if "data" in objects:
            return
        found = self.dataset
        if found is None:
            name, options = parse_call(self.settings.data)
            found = data(name, **options)
        objects.update(self.own)
        objects["data"] = prepare(found, self.settings, self.n_train)
        if retention and (found.task != "batches" or "processor" in self.own):
            from monochord.lab.retention import material

            objects["retention"] = material(self.settings.kind)


def problem(
    model: Any, given: Any, task: str | None, steps: int | None, processor: Any, overrides: Mapping[str, Any]
) -> Problem:
    """The task that a model and data are for; what is not given takes the defaults of its kind.

    Raises `DataError` when data fits no task and `ValueError` for an unknown task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose {', '.join(TASKS)}")
    dataset, name = None, None
    if isinstance(given, str) and (call := _catalog_call(given)):
        name = given
        kind = task or task_of(entries()[call].kind, _kind_of_model(model))
        if kind not in TASKS:
            raise DataError(f"{call} is for {kind}: compare needs {', '.join(TASKS)}")
    elif given is not None:
        dataset = data(str(given) if isinstance(given, Path) else given)
        kind = task or task_of(kind_of(dataset), _kind_of_model(model))
    else:
        kind = task or _kind_of_model(model)
    _check(model, dataset, kind)
    defaults = TASKS[kind].defaults
    name = name or (defaults["data"] if dataset is None else f"object:{dataset_fingerprint(dataset)}")
    chosen = {key: value for key, value in overrides.items() if value is not None}
    values = {key: chosen.get(key, defaults[key]) for key in ("batch_size", "max_length", "n_test", "n_validation")}
    if "max_length" not in chosen and TASKS[kind].sized and model != defaults["model"]:
        values["max_length"] = _side(model) or values["max_length"]
    own: dict[str, Any] = {"processor": processor} if processor is not None else {}
    model_name = str(model)
    if not isinstance(model, str | Path):
        own["model"] = model
        model_name = f"object:{_model_fingerprint(model)}"
    max_words = defaults.get("max_words") if given is None else None
    settings = Settings(kind, model_name, name, max_words=max_words, **values)
    shown = (type(model).__name__ if own.get("model") is not None else model_name, _shown(given, dataset, name))
    steps = steps or defaults["steps"]
    n_train = max(ENOUGH_ROWS, 2 * steps * settings.batch_size)
    return Problem(settings, " on ".join(shown), steps, dataset, own, n_train)


def entrants(given: Any, rates: Any) -> list[Entrant]:
    """The methods to compare: names, specs, tuners, or a mapping of labels to these; all defaults for None.

    `rates` are learning rates for all methods, or a mapping of method names to their own. Raises
    `MethodError` for unknown methods and `ValueError` for none or the same twice.
    """
    if given is None:
        given = DEFAULT_METHODS
    if isinstance(given, str):
        given = split(given, ",")
    elif not isinstance(given, Iterable):
        given = [given]
    pairs = list(given.items()) if isinstance(given, Mapping) else [(None, item) for item in given]
    if not pairs:
        raise ValueError(f"no methods to compare: choose from {', '.join(methods())}")
    found: list[Entrant] = []
    for label, item in pairs:
        tuner = build(item)
        text = item.strip() if isinstance(item, str) else describe(tuner)
        name = str(label) if label is not None else text
        spec = text if isinstance(item, str) else f"{text}#{_object_hash(tuner)}"
        found.append(
            Entrant(name, spec, tuner, not isinstance(item, str), rates_for(name, tuner, rates), code_hash(tuner))
        )
    for attribute in ("name", "spec"):
        values = [getattr(entrant, attribute) for entrant in found]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ValueError(f"the method {twice.partition('#')[0]} is there twice")
    return found


def resized(entrant: Entrant, name: str, value: int) -> Entrant:
    """The same method with another rank, width or length; of composed tuners none changes."""
    tuner = dataclasses.replace(entrant.tuner, **{name: value})
    text = describe(tuner)
    spec = f"{text}#{_object_hash(tuner)}" if entrant.given else text
    label = entrant.name.partition("(")[0]
    return dataclasses.replace(entrant, name=f"{label}({name}={value})", spec=spec, tuner=tuner)


def rates_for(name: str, tuner: Any, rates: Any) -> tuple[float, ...]:
    """The learning rates to choose from, rising: given ones, a grid around the method's own, or common ones."""
    if isinstance(rates, Mapping):
        rates = rates.get(name)
    if rates is None:
        first = (getattr(tuner, "tuners", None) or (tuner,))[0]
        own = getattr(first, "default_lr", None)
        rates = COMMON_RATES if own is None else [float(f"{own * factor:.1e}") for factor in OWN_GRID]
    if isinstance(rates, int | float):
        rates = [rates]
    chosen = tuple(sorted({float(rate) for rate in rates}))
    if not chosen or chosen[0] <= 0:
        raise ValueError(f"learning rates must be positive numbers, got {list(rates)}")
    return chosen


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """A count as 0, 1, ..., or the seeds themselves. Raises `ValueError` for none or repeated ones."""
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise ValueError(f"seeds must be a count of at least 1 or different numbers from 0 up, got {seeds}")
    return chosen


def code_hash(tuner: Any) -> str:
    """A hash of the sources that a trial's numbers depend on: the common ones and the tuner's own file."""
    digest = hashlib.sha256(_common_code().encode())
    for part in getattr(tuner, "tuners", None) or (tuner,):
        digest.update(_source(type(part)))
    return digest.hexdigest()[:16]


def dataset_fingerprint(dataset: Dataset) -> str:
    """A hash of every value of every split."""
    digest = hashlib.sha256()
    for name in sorted(dataset.splits):
        rows = dataset[name]
        for column in rows.columns:
            digest.update(f"{name}/{column}\0".encode())
            for value in rows[column]:
                _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(f"{key}\0".encode())
            _feed(digest, value[key])
    elif hasattr(value, "detach"):
        _feed(digest, value.detach().cpu().numpy())
    elif hasattr(value, "tobytes"):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    else:
        digest.update(json.dumps(value, default=str).encode() + b"\0")


def task_of(kind: str, of_model: str) -> str:
    """The kind of task that data of a kind is for, with a model that is usually tuned for `of_model`."""
    if kind == "speech":
        return AudioClassification.kind
    return Denoising.kind if of_model == Denoising.kind and kind == ImageClassification.kind else kind


def _side(model: Any) -> int | None:
    """The side of the pictures that a model of the catalog was made for."""
    from monochord.models import entries as models
    from monochord.models import processor

    known = isinstance(model, str) and model in models()
    return getattr(processor(model), "size", None) if known else None


def _check(model: Any, dataset: Dataset | None, kind: str) -> None:
    """Refuse what every trial would fail on."""
    from monochord.core.catalog import unknown
    from monochord.models import entries as models

    if isinstance(model, str) and model not in models() and not Path(model).exists() and "/" not in model:
        raise unknown(model, models(), "model")
    if dataset is None or dataset.task in ("batches", kind):
        return
    columns = dataset["train"].columns
    if kind == Denoising.kind and "image" not in columns:
        raise DataError(f"{dataset.name} has no images to denoise, only {', '.join(columns)}")
    if kind not in (CausalLM.kind, Denoising.kind) and "label" not in columns:
        raise DataError(f"{dataset.name} has no labels for {kind}, only {', '.join(columns)}")


def _catalog_call(text: str) -> str | None:
    """The name of a data set of the catalog when `text` is one, with or without arguments."""
    if text.partition("(")[0].strip() not in entries():
        return None
    return parse_call(text)[0]


def _kind_of_model(model: Any) -> str:
    """The kind of task that a model is usually tuned for."""
    from monochord.models import entries as models

    if isinstance(model, str) and model in models():
        kind = models()[model].kind
        kinds = {
            "image-encoder": ImageClassification.kind,
            "audio-classifier": AudioClassification.kind,
            "audio-encoder": AudioClassification.kind,
            "image-generator": Denoising.kind,
            "causal-lm": CausalLM.kind,
        }
        return kinds.get(kind, TextClassification.kind)
    config = getattr(model, "config", None)
    if config is None and isinstance(model, str | Path):
        file = Path(model) / "config.json"
        config = json.loads(file.read_text()) if file.is_file() else {}
    told = config if isinstance(config, dict) else vars(config or object) if hasattr(config, "__dict__") else {}
    names = " ".join(told.get("architectures") or [type(model).__name__])
    if "ForCausalLM" in names or "LMHead" in names:
        return CausalLM.kind
    return ImageClassification.kind if "image_size" in told else TextClassification.kind


def _shown(given: Any, dataset: Dataset | None, name: str) -> str:
    if dataset is not None:
        return dataset.name if isinstance(given, str | Path | Dataset) else "own data"
    return name


def _model_fingerprint(model: Any) -> str:
    from torch import nn

    from monochord.core.storage import fingerprint

    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a name, a folder or a torch module, got {type(model).__name__}")
    return fingerprint(model)[:16]


def _object_hash(tuner: Any) -> str:
    kind = type(tuner)
    return hashlib.sha256(f"{kind.__module__}.{kind.__qualname__} {tuner!r}".encode()).hexdigest()[:8]


@cache
def _common_code() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for place in _CODE:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _source(kind: type) -> bytes:
    """The source file of a class, or of the class alone, or its name where there is no source."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        pass
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return kind.__qualname__.encode()
