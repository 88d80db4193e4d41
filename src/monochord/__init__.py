"""Read, steer, tune, edit and compare neural networks: everything is a modification at a site.

    import monochord as mc
    model = mc.load("minilm")
    with mc.capture(model, "blocks.*.mlp:out") as acts: ...
    with mc.attach(model, {"blocks.5:out": mc.Add(vector, scale=4)}): ...
    tuned = mc.adapt.LoRA(rank=4).attach(model)

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "monochord.core.attach": ("Attachment", "attach"),
    "monochord.core.capture": ("Capture", "capture"),
    "monochord.core.changes": ("DenseChange", "LowRank", "SparseChange", "Unfrozen"),
    "monochord.core.delta": ("Delta",),
    "monochord.core.fit": ("fit",),
    "monochord.core.modification": (
        "Ablate",
        "Add",
        "Apply",
        "Bottleneck",
        "Clamp",
        "Modification",
        "Patch",
        "Project",
        "Scale",
        "WeightModification",
    ),
    "monochord.core.prompt": ("Prompt",),
    "monochord.core.reducers": ("Covariance", "Mean", "Moments", "Reservoir"),
    "monochord.core.registry": ("build", "methods"),
    "monochord.core.selection": ("Selection",),
    "monochord.core.sites": ("Site", "SiteError", "resolve", "sites"),
    "monochord.core.subspace": ("Subspace",),
    "monochord.core.tuner": ("Tuned", "Tuner"),
    "monochord.core.update": ("Gradient",),
    "monochord.core.zeroth_order": ("ZerothOrder",),
    "monochord.data": ("Batches", "Dataset"),
    "monochord.lab.compare": ("compare",),
    "monochord.models": ("load", "processor"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("adapt", "core", "data", "lab", "models", "objectives", "testing")

__all__ = [*sorted(_HOME_OF), *_MODULES]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from monochord import adapt as adapt
    from monochord import core as core
    from monochord import data as data
    from monochord import lab as lab
    from monochord import models as models
    from monochord import objectives as objectives
    from monochord import testing as testing
    from monochord.core.attach import Attachment as Attachment
    from monochord.core.attach import attach as attach
    from monochord.core.capture import Capture as Capture
    from monochord.core.capture import capture as capture
    from monochord.core.changes import DenseChange as DenseChange
    from monochord.core.changes import LowRank as LowRank
    from monochord.core.changes import SparseChange as SparseChange
    from monochord.core.changes import Unfrozen as Unfrozen
    from monochord.core.delta import Delta as Delta
    from monochord.core.fit import fit as fit
    from monochord.core.modification import Ablate as Ablate
    from monochord.core.modification import Add as Add
    from monochord.core.modification import Apply as Apply
    from monochord.core.modification import Bottleneck as Bottleneck
    from monochord.core.modification import Clamp as Clamp
    from monochord.core.modification import Modification as Modification
    from monochord.core.modification import Patch as Patch
    from monochord.core.modification import Project as Project
    from monochord.core.modification import Scale as Scale
    from monochord.core.modification import WeightModification as WeightModification
    from monochord.core.prompt import Prompt as Prompt
    from monochord.core.reducers import Covariance as Covariance
    from monochord.core.reducers import Mean as Mean
    from monochord.core.reducers import Moments as Moments
    from monochord.core.reducers import Reservoir as Reservoir
    from monochord.core.registry import build as build
    from monochord.core.registry import methods as methods
    from monochord.core.selection import Selection as Selection
    from monochord.core.sites import Site as Site
    from monochord.core.sites import SiteError as SiteError
    from monochord.core.sites import resolve as resolve
    from monochord.core.sites import sites as sites
    from monochord.core.subspace import Subspace as Subspace
    from monochord.core.tuner import Tuned as Tuned
    from monochord.core.tuner import Tuner as Tuner
    from monochord.core.update import Gradient as Gradient
    from monochord.core.zeroth_order import ZerothOrder as ZerothOrder
    from monochord.data import Batches as Batches
    from monochord.data import Dataset as Dataset
    from monochord.lab.compare import compare as compare
    from monochord.models import load as load
    from monochord.models import processor as processor


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"monochord.{name}")
    raise AttributeError(f"module 'monochord' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
