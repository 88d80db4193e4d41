"""Write the vectors by which `monochord papers --search` finds papers by meaning: `papers/embeddings.npz`.

python tools/embed_papers.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.lab.repertoire import repertoire
from monochord.models.zoo.wordllama import embed

TARGET = Path(__file__).parent.parent / "src/monochord/papers/embeddings.npz"


def main() -> None:
    entries = repertoire()
    vectors = embed([f"{entry.title}. {entry.abstract}" for entry in entries]).astype(np.float16)
    np.savez(TARGET, slugs=np.array([entry.slug for entry in entries]), vectors=vectors)


if __name__ == "__main__":
    main()
