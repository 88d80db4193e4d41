"""Real data: a small catalog of sets that ship in packages, and whatever files, rows and loaders people have."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from monochord.core.catalog import unknown
from monochord.data.adopt import FILES, adopt
from monochord.data.audio import Clips as Clips
from monochord.data.catalog import Source as Source
from monochord.data.catalog import catalog as catalog
from monochord.data.catalog import entries as entries
from monochord.data.catalog import fetch as fetch
from monochord.data.dataset import DataError as DataError
from monochord.data.dataset import Dataset as Dataset
from monochord.data.dataset import Split as Split
from monochord.data.loading import Batches as Batches


def data(given: Any, *, limit: dict[str, int] | None = None, progress: bool = True, **options: Any) -> Dataset:
    """A `Dataset`: of the catalog by name, or of the caller's own.

    `given` is a catalog name, a `.csv`, `.tsv`, `.jsonl` or `.json` file, a file or folder in one of the layouts of
    `monochord.data.formats`, a list of rows (dicts), a dict of columns, a `datasets.Dataset` or `DatasetDict`, a
    loader or list of ready batches, or a `Dataset`. `limit` caps splits with classes kept even: `{"train": 2000}`.
    `options` belong to the set or layout (`source="imdb"`, `seed=1`).
    Raises `CatalogError` for unknown names and `DataError` for data that can't be used.
    """
    if isinstance(given, Dataset):
        dataset = given
    elif isinstance(given, str) and given in entries():
        dataset = entries()[given].open(progress=progress, **options)
    elif isinstance(given, str | Path) and Path(given).suffix not in FILES and _is_path(given):
        from monochord.data import formats

        dataset = formats.load(given, **options)
    elif isinstance(given, str) and Path(given).suffix not in FILES:
        raise unknown(given, entries(), "data set")
    else:
        dataset = adopt(given, **options)
    return dataset.limit(**limit) if limit else dataset


def _is_path(given: str | Path) -> bool:
    """Whether this is a place on disk, there or not, rather than a name of the catalog."""
    path = Path(given)
    return path.exists() or (not path.suffix and (isinstance(given, Path) or len(path.parts) > 1))


class _Callable(ModuleType):
    """`monochord.data` is this package and, called, its function `data`: `mc.data("movie-reviews")`."""

    def __call__(self, given: Any, **options: Any) -> Dataset:
        return data(given, **options)


sys.modules[__name__].__class__ = _Callable
