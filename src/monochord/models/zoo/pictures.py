"""The project's own diffusion nets and the judge of their pictures; each appears in the catalog with its weights.

`edm-unet` makes Fashion-MNIST's clothes, unconditionally. `pictures-unet` draws what its caption says ("a small red
seven on the left of a blue background"), by v-prediction on a cosine schedule with classifier-free guidance;
`pictures-unet-memorised` goes on from it on a set in which some pictures come many times. `pictures-judge` reads what
a picture shows. tools/zoo/diffusion_*.py train them; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monochord.models.shipped import Shipped, read_weights, trained

TOKENS = 24


def text_to_image(seed: int, vocabulary: int) -> Any:
    """The text-to-image model at its random initialisation, without a tokenizer."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from monochord.models.nets import patched_unet
    from monochord.models.nets.text_to_image import TextToImage

    library: Any = diffusers
    nets: Any = patched_unet  # neither is typed
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPTextModel(text)
        unet = nets.PatchedConditionalUNet(
            sample_size=16,
            in_channels=12,
            out_channels=12,
            block_out_channels=(64, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=96,
            addition_embed_type="text",  # the whole caption joins the timestep too
            addition_embed_type_num_heads=4,
            attention_head_dim=4,  # the number of heads, by diffusers' old name
            norm_num_groups=8,
        )
    scheduler = library.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    return TextToImage(unet, encoder, scheduler)


def edm(seed: int) -> Any:
    """The EDM denoiser at its random initialisation."""
    import torch

    from monochord.models.nets import patched_unet
    from monochord.models.nets.edm import Denoiser

    nets: Any = patched_unet  # diffusers' classes are not typed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = nets.PatchedUNet(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=32,
        )
    return Denoiser(unet)


def tokenizer(folder: Path) -> Any:
    """The tokenizer of captions: a word a token; <new1> to <new8> are free for new concepts."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder.parent / "pictures-unet")


def load(folder: Path, dtype: Any, *, checkpoint: str = "final") -> Any:
    """A `TextToImage`; `checkpoint` is "final", or "init" for the random initialisation."""
    words = tokenizer(folder)
    model = text_to_image(_said(folder)["seed"], len(words.get_vocab()))
    model.tokenizer = words
    return _with_weights(model, folder, dtype, checkpoint)


def load_edm(folder: Path, dtype: Any, *, checkpoint: str = "final") -> Any:
    """A `Denoiser`, as `load` of the others."""
    return _with_weights(edm(_said(folder)["seed"]), folder, dtype, checkpoint)


def load_judge(folder: Path, dtype: Any) -> Any:
    """An `AttributeJudge`."""
    from monochord.models.nets.judge import AttributeJudge

    return _with_weights(AttributeJudge(_said(folder)["seed"]), folder, dtype, "final")


def canvas(folder: Path) -> Any:
    """Grey pictures of 32 by 32."""
    from monochord.models.images import Canvas

    return Canvas(32, channels=1)


def no_processor(folder: Path) -> Any:
    """There is none."""
    raise ValueError(f"{folder.name} takes pictures between -1 and 1 as they are: there is nothing to process them by")


def _said(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "net.json").read_text(encoding="utf8"))
    return said


def _with_weights(model: Any, folder: Path, dtype: Any, checkpoint: str) -> Any:
    import torch

    from monochord.models.loading import LoadError

    if checkpoint not in ("final", "init"):
        raise LoadError(f"{folder.name} has no checkpoint {checkpoint!r}: use 'final' or 'init'")
    if checkpoint == "final":
        try:
            model.load_state_dict(read_weights(folder / f"step-{_said(folder)['steps'][-1]}.safetensors"))
        except RuntimeError as error:
            raise LoadError(f"{folder.name}: {str(error).splitlines()[-1].strip()[:160]}") from None
    model.name_or_path = folder.name
    return model.to(dtype or torch.float32)


def _net(name: str, kind: str, architecture: str, parameters: int, title: str, *functions: Any) -> Shipped:
    load, processor = functions
    licence = "Apache-2.0, ours; trained on MNIST and Fashion-MNIST"
    return Shipped(
        name=name,
        kind=kind,
        title=title,
        licence=licence,
        package=None,
        parameters=parameters,
        architecture=architecture,
        load=load,
        processor=processor,
    )


ENTRIES = trained(
    _net(
        "pictures-unet",
        "text-to-image",
        "TextToImage",
        3_498_412,
        "our own U-Net that paints digits and clothes as captions say, 32 by 32",
        load,
        tokenizer,
    ),
    _net(
        "pictures-unet-memorised",
        "text-to-image",
        "TextToImage",
        3_498_412,
        "pictures-unet gone on with pictures that come many times",
        load,
        tokenizer,
    ),
    _net(
        "edm-unet",
        "image-generator",
        "Denoiser",
        1_744_836,
        "our own EDM denoiser of Fashion-MNIST, 32 by 32",
        load_edm,
        canvas,
    ),
    _net(
        "pictures-judge",
        "image-classifier",
        "AttributeJudge",
        228_121,
        "our own reader of coloured things: what, which colour, on what, where",
        load_judge,
        no_processor,
    ),
)
