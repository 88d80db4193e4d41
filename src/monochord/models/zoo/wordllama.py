"""WordLlama: static vectors of 32,000 tokens, distilled from the embeddings of large language models.

A text is the mean of its tokens' vectors. `embed` needs numpy only and answers in milliseconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.models.catalog import Model

TOKENIZER, WEIGHTS = "tokenizer.json", "model.safetensors"


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors (n, 256), float32, of texts; a text without tokens is the zero vector. Imports no torch."""
    tokenizer, vectors = _table()
    made = np.zeros((len(texts), vectors.shape[1]), np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if encoding.ids:
            made[row] = vectors[encoding.ids].mean(axis=0)
    return np.asarray(made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12))


@cache
def _table() -> tuple[Any, np.ndarray]:
    """The tokenizer and the vectors of all tokens (32000, 256)."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = ENTRIES[0].fetch()
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, load_file(folder / WEIGHTS)["embedding.weight"].astype(np.float32)


def convert(package: Path, folder: Path) -> None:
    """Vectors and tokenizer, side by side."""
    shutil.copy(package / "wordllama/weights/l2_supercat_256.safetensors", folder / WEIGHTS)
    shutil.copy(package / "wordllama/tokenizers/l2_supercat_tokenizer_config.json", folder / TOKENIZER)


def load(folder: Path, dtype: Any) -> Any:
    """A `WordEmbedding`."""
    from monochord.models.nets.word_embedding import WordEmbedding
    from monochord.models.stored import load_state

    return load_state(WordEmbedding(), folder, dtype)


def processor(folder: Path) -> Any:
    """The tokenizer, without special tokens."""
    import transformers

    library: Any = transformers
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER), **names)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


ENTRIES = [
    Model(
        name="wordllama",
        kind="text-encoder",
        title="WordLlama, 32,000 static vectors of 256",
        licence="MIT",
        parameters=8_192_000,
        architecture="WordEmbedding",
        package=Package(
            "pypi",
            "wordllama",
            "0.4.0.post1",
            sha256="42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
            size=19_155_170,
            members=("wordllama/weights/*.safetensors", "wordllama/tokenizers/*.json", "*LICENSE"),
            tag="cp311-cp311-manylinux2014_x86_64",
        ),
        convert=convert,
        load=load,
        processor=processor,
    )
]
