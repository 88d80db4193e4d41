"""Load anything: a small catalog of real models that ship in packages, any hub id, folder or module."""

from typing import TYPE_CHECKING, Any

from monochord.models.catalog import Model as Model
from monochord.models.catalog import catalog as catalog
from monochord.models.catalog import entries as entries
from monochord.models.images import ImageProcessor as ImageProcessor
from monochord.models.loading import LoadError as LoadError
from monochord.models.loading import fetch as fetch
from monochord.models.loading import load as load
from monochord.models.loading import processor as processor

if TYPE_CHECKING:
    from monochord.models.heads import Classifier as Classifier


def __getattr__(name: str) -> Any:
    if name == "Classifier":  # a module of torch, which listing the catalog does not need
        from monochord.models.heads import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
