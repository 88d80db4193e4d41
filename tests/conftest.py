"""Shared by all tests: one thread, quiet libraries, `tests/` importable for the model zoo, and what may be fetched.

A test that needs entries of the catalog says so: `@pytest.mark.material("clip-art", "emoji")`, or without names when
its parameter `name` is the entry. What is at most 40 MB to fetch, or in `ALWAYS`, is fetched when absent; the rest is
tested when it is in the cache or when `MONOCHORD_MATERIAL=all` is set, and skipped otherwise.
"""

import os
import sys
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings("ignore", message=".*torchvision.*")


LIMIT = 40_000_000  # bytes
ALWAYS = {"minilm", "smollm2", "dinov2-s", "whisper-tiny"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "material(*names): entries of the catalog that the test needs")
    import torch

    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("material"):
        for name in marker.args or (item.callspec.params["name"],):
            if reason := lacking(name):
                pytest.skip(reason)


def lacking(name: str) -> str:
    """Why a test of a catalog entry is left out; empty when it runs."""
    from monochord import data, models

    entry = models.entries().get(name) or data.entries()[name]
    if name in ALWAYS or entry.size <= LIMIT or os.environ.get("MONOCHORD_MATERIAL") == "all" or entry.present:
        return ""
    return f"{name} is {entry.size / 1e6:.0f} MB to fetch: `monochord fetch {name}` or MONOCHORD_MATERIAL=all"
