"""Sampling: against solutions that are known, the samplers of diffusers, and itself in other batches."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn

from monochord.diffusion.sampling import (
    denoise,
    heun,
    karras_levels,
    picture_shape,
    sample,
    sample_edm,
    sample_unconditional,
)
from monochord.models.nets.edm import Denoiser
from monochord.models.nets.patched_unet import PatchedUNet

SIZES = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **SIZES, **BLOCKS).eval()


def gaussian(mean, deviation):
    """The exact denoiser of normal data."""
    return lambda x, sigma: (deviation**2 * x + sigma**2 * mean) / (deviation**2 + sigma**2)


def test_heun_carries_noise_to_the_data_of_a_known_denoiser():
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    exact = 1.5 + 0.5 * (noise * 80 - 1.5) / (0.25 + 80**2) ** 0.5
    coarse, fine = ((heun(gaussian(1.5, 0.5), noise, karras_levels(steps)) - exact).abs().mean() for steps in (20, 80))
    assert fine < 0.002 and coarse > 10 * fine  # of second order: a sixteenth, nearly


def test_levels_fall_from_the_first_to_the_last_and_then_to_nothing():
    levels = karras_levels(18, 0.01, 50)
    assert len(levels) == 19 and levels[-1] == 0 and (levels.diff() < 0).all()
    assert levels[0].item() == pytest.approx(50) and levels[-2].item() == pytest.approx(0.01)
    with pytest.raises(ValueError, match="use 2 steps or more"):
        karras_levels(1)


def test_is_the_pipeline_of_diffusers(unet):
    scheduler = DDIMScheduler(clip_sample=False)
    generator = torch.Generator().manual_seed(3)
    theirs = DDIMPipeline(unet, scheduler)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(batch_size=2, generator=generator, num_inference_steps=5, output_type="np").images
    ours = sample_unconditional(unet, scheduler, 2, steps=5, seed=3)
    assert torch.allclose((ours / 2 + 0.5).clamp(0, 1), torch.from_numpy(wanted).permute(0, 3, 1, 2), atol=1e-5)


def test_batches_of_any_size_make_the_same_pictures_and_the_scheduler_is_left_alone(unet):
    scheduler = DDIMScheduler()
    whole = sample_unconditional(unet, scheduler, 5, steps=4)
    assert torch.allclose(sample_unconditional(unet, scheduler, 5, steps=4, batch_size=2), whole, atol=1e-5)
    assert scheduler.num_inference_steps is None
    other = sample_unconditional(unet, scheduler, 5, steps=4, seed=1)
    assert not torch.allclose(other, whole, atol=0.1)


def test_random_schedulers_follow_the_seed(unet):
    scheduler = DDPMScheduler()
    one, again, other = (sample_unconditional(unet, scheduler, 2, steps=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


class Words:
    """A tokenizer of characters."""

    model_max_length = 4

    def __call__(self, texts, **options):
        return {"input_ids": torch.tensor([[ord(c) % 50 for c in text[:4].ljust(4)] for text in texts])}


class Line(nn.Module):
    """A U-Net whose prediction is the mean of what the caption says, everywhere."""

    picture_shape = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, noisy, timestep, encoder_hidden_states):
        self.asked = len(noisy)
        made = self.weight * encoder_hidden_states.mean((1, 2))[:, None, None, None] + 0 * noisy
        return type("Output", (), {"sample": made})


class Tiny:
    """What `sample` needs of a model; it predicts the clean picture."""

    def __init__(self):
        torch.manual_seed(0)
        table = nn.Embedding(50, 3)
        self.unet, self.tokenizer, self.scheduler = Line(), Words(), DDIMScheduler(prediction_type="sample")
        self.scheduler.register_to_config(clip_sample=False)
        self.text_encoder = nn.Module()
        self.text_encoder.table = table
        self.text_encoder.forward = lambda ids: (table(ids),)


def test_guidance_goes_on_from_the_empty_caption_to_the_given_one():
    model = Tiny()
    said, nothing = (model.text_encoder.table(Words()([text])["input_ids"]).mean().detach() for text in ("ab", ""))
    for guidance in (0.0, 1.0, 3.0):
        made = sample(model, "ab", steps=3, guidance=guidance)
        assert made.shape == (1, 1, 2, 2)
        assert torch.allclose(made, nothing + guidance * (said - nothing), atol=1e-5)
    sample(model, ["ab", "cd"], steps=2, guidance=1.0)
    assert model.unet.asked == 2
    sample(model, ["ab", "cd"], steps=2, guidance=2.0)
    assert model.unet.asked == 4
    with pytest.raises(ValueError, match="no prompts"):
        sample(model, [])


def test_what_makes_no_sense_is_refused(unet):
    with pytest.raises(ValueError, match="at least one picture"):
        sample_unconditional(unet, DDIMScheduler(), 0)
    with pytest.raises(ValueError, match="steps=0"):
        denoise(lambda x, t, rows: x, torch.zeros(1, 1, 2, 2), DDIMScheduler(), 0)


def test_patches_are_pixels_to_the_outside():
    torch.manual_seed(0)
    net = PatchedUNet(sample_size=8, in_channels=4, out_channels=4, **SIZES, **BLOCKS).eval()
    assert picture_shape(net) == (1, 16, 16)
    x = torch.randn(2, 1, 16, 16)
    out = net(x, 5).sample
    assert out.shape == x.shape and torch.equal(net(x, 5, return_dict=False)[0], out)
    inner = UNet2DModel.forward(net, nn.functional.pixel_unshuffle(x, 2), 5).sample
    assert torch.equal(nn.functional.pixel_shuffle(inner, 2), out)
    denoiser = Denoiser(net)
    made = sample_edm(denoiser, 3, steps=3, batch_size=2)
    assert made.shape == (3, 1, 16, 16) and made.isfinite().all()


def test_an_edm_denoiser_keeps_what_has_no_noise_and_its_loss_is_that_of_the_denoised():
    torch.manual_seed(0)
    denoiser = Denoiser(PatchedUNet(sample_size=8, in_channels=4, out_channels=4, **SIZES, **BLOCKS).eval())
    x = torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(denoiser(x, 1e-4), x, atol=1e-3)
        sigma = torch.tensor([0.1, 0.5, 2.0, 10.0])
        loss = denoiser.loss_at(x, sigma, torch.Generator().manual_seed(1))
        noisy = x + sigma[:, None, None, None] * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        error = (denoiser(noisy, sigma) - x).square().mean((1, 2, 3))
    weight = (sigma**2 + 0.49) / (sigma * 0.7) ** 2  # as in the paper's table
    assert torch.allclose(loss, weight * error, rtol=1e-3)
