"""Shared by all tests: one thread, quiet libraries, `tests/` importable for the model zoo."""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings("ignore", message=".*torchvision.*")


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)
