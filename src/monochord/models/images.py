"""Pixels for a vision model: resize, scale, normalise, a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageProcessor:
    """Images to `pixel_values` (batch, 3, size, size): bilinear with antialiasing, then `(x - mean) / std`.

    Called like the image processors of transformers. `mean` and `std` are those of ImageNet on a scale to 1.
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(
        self, images: Any, return_tensors: str = "pt", input_data_format: str = "channels_last"
    ) -> dict[str, Tensor]:
        """`images`: uint8, grey (batch, height, width) or (batch, height, width, 3), or a list of images."""
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        if (return_tensors, input_data_format) != ("pt", "channels_last"):
            raise ValueError("this processor takes channels last and gives tensors of torch only")
        if isinstance(images, list | tuple):
            images = [np.asarray(image) for image in images]
            if len({image.shape for image in images}) > 1:
                return {"pixel_values": torch.cat([self(image[None])["pixel_values"] for image in images])}
            images = np.stack(images)
        pixels = _scaled(images)
        if pixels.shape[2:] != (self.size, self.size):
            pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return {"pixel_values": (pixels - mean) / std}


@dataclass(frozen=True)
class Canvas:
    """Images to `pixel_values` (batch, channels, size, size) between -1 and 1, as diffusion nets take them.

    Smaller images lie in the middle of a black canvas, larger ones are made smaller. One channel is grey.
    """

    size: int
    channels: int = 3

    def __call__(
        self, images: Any, return_tensors: str = "pt", input_data_format: str = "channels_last"
    ) -> dict[str, Tensor]:
        """`images`: uint8, grey (batch, height, width) or (batch, height, width, 3), or a list of equal ones."""
        import numpy as np
        from torch.nn.functional import interpolate, pad

        pixels = _scaled(np.stack([np.asarray(image) for image in images]))
        if pixels.shape[1] != self.channels:
            pixels = pixels.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if max(pixels.shape[2:]) > self.size:
            pixels = interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        down, right = (self.size - side for side in pixels.shape[2:])
        pixels = pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
        return {"pixel_values": 2 * pixels - 1}


def _scaled(images: Any) -> Tensor:
    """uint8 (batch, height, width), or with three channels last, as (batch, channels, height, width) from 0 to 1."""
    import numpy as np
    import torch

    whole = np.ascontiguousarray(images)
    pixels = torch.as_tensor(whole if whole.flags.writeable else whole.copy())
    shape = tuple(pixels.shape)
    if pixels.dtype != torch.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise ValueError(f"images are uint8 (batch, h, w) or (batch, h, w, 3), got {pixels.dtype} {shape}")
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float() / 255
