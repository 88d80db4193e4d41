"""What several trials of a paper begin with, made once for each seed: a tuned model, features of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from monochord.lab.paper import Paper, Trial

if TYPE_CHECKING:
    from torch import Tensor


def kept(paper: Paper, trial: Trial, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of `make()`, from the cache where an earlier trial of this seed and this very code made them.

    What `make` gives may depend on the seed and the scale alone. Small-scale trials always make them.
    """
    from monochord.core.cache import cache_folder
    from monochord.core.storage import load_tensors, save_tensors
    from monochord.lab.repertoire import module_of, source_hash

    if trial.scale == "smoke":
        return dict(make())
    code = source_hash(module_of(paper.slug), paper.uses)
    file = cache_folder() / "papers" / paper.slug / f"{name}-{trial.seed}-{code}.safetensors"
    if not file.exists():
        made = dict(make())
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"{name}-{trial.seed}-*.safetensors"):
            old.unlink(missing_ok=True)
        save_tensors(file, made, {})
    return load_tensors(file)[0]
