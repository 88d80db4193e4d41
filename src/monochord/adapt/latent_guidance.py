"""Latent guidance while a diffusion or flow policy is tuned: the steering of Align-Then-stEer.

From "Align-Then-stEer: Adapting the Vision-Language Action Models through Unified Latent Guidance", September 2, 2025.
To the policy's prediction on a noised chunk is added the gradient of how near its latent is to the demonstration's, and
the sum is trained to be the usual target. An objective around any tuner, not a `Tuner`: attach one, or train all.

    loss = GuidedDiffusionLoss(scheduler, LatentGuidance(vae, scale=3.0))
    tuned = LoRA("blocks.**.weight").attach(policy)
    mc.fit(policy, batches, loss, steps=1000)                               # of actions and condition
    chunks = denoise(loss.predictor(policy, condition), noise, scheduler, steps=10)

The added term does not depend on the policy's weights, so that it shifts the target: a policy trained with it and asked
without it has learnt the target minus the term. `at` says where it is added: "train" is the paper's way, "sample" is
classifier guidance of a policy tuned as usual, "both" adds it in both places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from monochord.core.objective import Batch, Loss, Objective, Step

KINDS = ("epsilon", "sample", "v_prediction", "flow")
PLACES = ("train", "sample", "both")


class LatentGuidance:
    """The gradient of -MSE(z_t, z_0), the latents of a noised and a clean chunk, in the form of a prediction.

    `vae` has `encode(chunk) -> mean, std`; it is frozen here. Both latents share their noise. The gradient times what
    the kind of prediction asks for is clamped to [-clamp, clamp] and multiplied by `scale`. `mask`, broadcast to a
    chunk's shape, is false where actions are padding: nothing is added there. All of it is computed in the VAE's own
    precision, also under autocast.
    """

    def __init__(
        self, vae: nn.Module, scale: float = 3.0, clamp: float = 0.1, mask: Tensor | None = None, *, at: str = "train"
    ) -> None:
        if at not in PLACES:
            raise ValueError(f"at must be one of {', '.join(PLACES)}, got {at!r}")
        if clamp <= 0:
            raise ValueError(f"clamp={clamp} must be above 0: at most so much is added, times scale")
        self.vae: Any = vae.eval().requires_grad_(False)
        self.scale, self.clamp, self.mask, self.at = scale, clamp, mask, at

    def active(self, place: str) -> bool:
        """Whether anything is added in "train" or "sample"."""
        return self.scale != 0 and self.at in (place, "both")

    def gradient(self, noisy: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """Of -MSE(z_t, z_0) by `noisy`, both (batch, ...); `noise` (batch, latent) is shared by both latents."""
        own = next(self.vae.parameters())
        self.vae.to(noisy.device)
        with torch.enable_grad(), torch.autocast(noisy.device.type, enabled=False):
            noisy = noisy.detach().to(own.dtype).requires_grad_(True)
            noise = noise.to(noisy)
            with torch.no_grad():
                mean, std = self.vae.encode(clean.detach().to(noisy))
                target = mean + std * noise
            mean, std = self.vae.encode(noisy)
            energy = -(mean + std * noise - target).square().mean(1).sum()  # a chunk's does not depend on others
            gradient: Tensor = torch.autograd.grad(energy, noisy)[0]
        return gradient if self.mask is None else gradient * self.mask.to(gradient)

    def term(
        self, noisy: Tensor, clean: Tensor, alpha: Tensor, sigma: Tensor, kind: str, generator: Generator
    ) -> Tensor:
        """What is added to a prediction of the given kind for `noisy = alpha * clean + sigma * noise`."""
        latent = self._latent(noisy)
        noise = torch.randn((len(noisy), latent), generator=generator).to(noisy.device)
        gradient = self.gradient(noisy, clean, noise)
        factor = factors(alpha.to(gradient), sigma.to(gradient), kind)
        return self.scale * (factor * gradient).clamp(-self.clamp, self.clamp)

    def _latent(self, chunk: Tensor) -> int:
        if not hasattr(self.vae, "latent"):
            own = next(self.vae.parameters())
            with torch.no_grad():
                return int(self.vae.to(chunk.device).encode(chunk[:1].to(own.dtype))[0].shape[1])
        return int(self.vae.latent)


class GuidedDiffusionLoss(Objective):
    """The squared error of a diffusion or flow policy whose prediction is guided; the usual one without `guidance`.

    `scheduler` is any of diffusers' with `alphas_cumprod` (epsilon, sample and v prediction) or of flow matching (the
    velocity, noise minus clean). The policy is called with the noised chunk, the timesteps (batch,) and, where the
    batch has one, the condition; it returns the prediction or an output with `sample`. `clean` and `condition` are
    names in the batch. Timesteps and noise depend on the step alone: they are the same with guidance and without.
    """

    def __init__(
        self, scheduler: Any, guidance: LatentGuidance | None = None, *, clean: str = "actions",
        condition: str = "condition",
    ) -> None:  # fmt: skip
        self.scheduler, self.guidance, self.clean, self.condition = scheduler, guidance, clean, condition
        self.kind, self._times, self._alpha, self._sigma = levels(scheduler)

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        if self.clean not in batch:
            raise ValueError(f"the batch has no {self.clean!r}, only {', '.join(batch)}: pass clean= its name")
        given = batch[self.clean]
        clean = given if given.dtype == torch.float64 else given.float()
        generator = Generator().manual_seed((step.seed * 1_000_003 + step.index) % (1 << 63))
        level = torch.randint(len(self._times), (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        alpha, sigma = (_like(values[level], clean) for values in (self._alpha, self._sigma))
        noisy = alpha * clean + sigma * noise
        predicted = _call(model, noisy.to(given), self._times[level].to(clean.device), batch.get(self.condition)).to(
            clean
        )
        terms = {}
        if self.guidance is not None and self.guidance.active("train"):
            added = self.guidance.term(noisy, clean, alpha, sigma, self.kind, generator).to(predicted)
            predicted = predicted + added
            terms["guidance"] = added.abs().mean().item()
        error = (predicted - target_of(clean, noise, alpha, sigma, self.kind)).square().flatten(1).mean(1)
        value = error.sum() / step.count(self, len(clean))
        return Loss(value, {self.name: value.item(), **terms})

    def count(self, batch: Batch) -> float:
        return float(len(batch[self.clean])) if self.clean in batch else super().count(batch)

    def predictor(
        self, model: nn.Module, condition: Tensor | None = None, *, seed: int = 0
    ) -> Callable[[Tensor, Tensor, slice], Tensor]:
        """`predict(noisy, timestep, rows)` for `diffusion.denoise`; guided where `guidance.at` says "sample" or "both".

        At sampling no demonstration is known: the policy's own estimate of the clean chunk stands for it.
        """
        generator = Generator().manual_seed(seed)

        def predict(noisy: Tensor, timestep: Tensor, rows: slice = slice(None)) -> Tensor:
            times = timestep.to(noisy.device).expand(len(noisy))
            predicted = _call(model, noisy, times, None if condition is None else condition[rows])
            if self.guidance is None or not self.guidance.active("sample"):
                return predicted
            level = int((self._times - timestep.cpu()).abs().argmin())
            alpha, sigma = (_like(v[level].expand(len(noisy)), noisy) for v in (self._alpha, self._sigma))
            clean = clean_of(predicted, noisy, alpha, sigma, self.kind)
            return predicted + self.guidance.term(noisy, clean, alpha, sigma, self.kind, generator).to(predicted)

        return predict


def levels(scheduler: Any) -> tuple[str, Tensor, Tensor, Tensor]:
    """What a scheduler's net predicts, its training timesteps, and of each how much is signal and how much noise."""
    kind = getattr(scheduler.config, "prediction_type", None)
    if hasattr(scheduler, "alphas_cumprod"):
        kept = scheduler.alphas_cumprod.float()
        if kind not in KINDS[:3]:
            raise ValueError(f"prediction_type={kind!r} of {type(scheduler).__name__}: use {', '.join(KINDS[:3])}")
        return kind, torch.arange(len(kept)), kept.sqrt(), (1 - kept).sqrt()
    if hasattr(scheduler, "scale_noise"):
        options = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        fresh = type(scheduler)(**options)  # its own levels may be those of a few sampling steps
        sigma = fresh.sigmas[: fresh.config.num_train_timesteps].float()
        return "flow", fresh.timesteps[: len(sigma)].float(), 1 - sigma, sigma
    raise ValueError(
        f"{type(scheduler).__name__} has neither alphas_cumprod nor scale_noise: use a diffusion scheduler such as "
        "DDPMScheduler, or a flow matching one"
    )


def factors(alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """What a gradient of log-likelihood by the noised chunk is multiplied by, to be added to a prediction.

    The score is minus the predicted noise over sigma, so a gradient adds `-sigma` times itself to the noise; the other
    kinds follow from `noisy = alpha * clean + sigma * noise`. The factor of flow matching is derived in this way, too.
    """
    if kind == "epsilon":
        return -sigma
    tiny = torch.finfo(alpha.dtype).tiny
    if kind == "sample":
        return sigma.square() / alpha.clamp_min(tiny)
    return -sigma / alpha.clamp_min(tiny)


def target_of(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """What the net is to predict."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    return alpha * noise - sigma * clean if kind == "v_prediction" else noise - clean


def clean_of(predicted: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """The clean chunk that a prediction means."""
    if kind == "epsilon":
        return (noisy - sigma * predicted) / alpha.clamp_min(1e-6)
    if kind == "sample":
        return predicted
    return alpha * noisy - sigma * predicted if kind == "v_prediction" else noisy - sigma * predicted


def _like(values: Tensor, chunk: Tensor) -> Tensor:
    """Values (batch,) that multiply (batch, ...)."""
    return values.to(chunk).reshape(-1, *(1,) * (chunk.ndim - 1))


def _call(model: nn.Module, noisy: Tensor, times: Tensor, condition: Tensor | None) -> Tensor:
    output = model(noisy, times) if condition is None else model(noisy, times, condition)
    found: Tensor = output if isinstance(output, Tensor) else output.sample
    return found
