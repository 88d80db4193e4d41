"""A small latent space of action chunks, and a place in it to aim at: the alignment of Align-Then-stEer.

From "Align-Then-stEer: Adapting the Vision-Language Action Models through Unified Latent Guidance", September 2, 2025.

    first = ActionVAE(dim=4, horizon=16)
    mc.fit(first, known_chunks, VAEObjective())                            # actions of pretraining
    reference = LatentReference.from_data(first, known_chunks)
    second = ActionVAE(dim=4, horizon=16)
    mc.fit(second, new_chunks, VAEObjective(reference=reference))          # actions of the new robot

Batches have `actions`, (batch, horizon, dim). The divergence of a chunk's latent law q from the reference p has two
directions: `kl="reverse"`, KL(q || p), seeks a mode, as the paper's text asks; `kl="forward"`, KL(p || q), covers all,
and is what its code computes in the second stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.batches import as_batch
from monochord.core.objective import Batch, Loss, Objective, Step, evaluating

DIRECTIONS = ("reverse", "forward")


class ActionVAE(nn.Module):
    """Chunks (batch, horizon, dim) to one latent Gaussian each and back.

    The encoder is a transformer of `layers` (odd) with skip connections from its first half to its second, over the
    actions and two learned tokens that become the mean and the deviation. The decoder's learned positions attend to the
    latent vector. Works for any action vector that is padded to `dim`.
    """

    def __init__(
        self, dim: int, horizon: int, latent: int = 32, *, width: int = 64, layers: int = 3, heads: int = 4,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if layers % 2 == 0 or layers < 1:
            raise ValueError(f"layers={layers} must be odd: halves joined by skips, and one between")
        self.dim, self.horizon, self.latent = dim, horizon, latent
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
            self.embed = nn.Linear(dim, width)
            self.tokens = nn.Parameter(torch.randn(2, width) / width**0.5)
            self.positions = nn.Parameter(torch.randn(horizon + 2, width) / width**0.5)
            self.encoder = nn.ModuleList(
                nn.TransformerEncoderLayer(width, heads, 2 * width, **options) for _ in range(layers)
            )
            self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers // 2))
            self.to_mean, self.to_log_variance = nn.Linear(width, latent), nn.Linear(width, latent)
            self.from_latent = nn.Linear(latent, width)
            self.queries = nn.Parameter(torch.randn(horizon, width) / width**0.5)
            self.decoder = nn.ModuleList(
                nn.TransformerDecoderLayer(width, heads, 2 * width, **options) for _ in range((layers + 1) // 2)
            )
            self.to_actions = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def encode(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent law, (batch, latent) each."""
        if actions.shape[1:] != (self.horizon, self.dim):
            raise ValueError(f"chunks of shape {tuple(actions.shape[1:])}: this VAE takes {(self.horizon, self.dim)}")
        tokens = self.tokens.expand(len(actions), -1, -1)
        x = torch.cat([tokens, self.embed(actions)], 1) + self.positions
        half = len(self.joins)
        kept: list[Tensor] = []
        for i, layer in enumerate(self.encoder):
            if i > half:
                x = self.joins[i - half - 1](torch.cat([x, kept.pop()], -1))
            x = layer(x)
            if i < half:
                kept.append(x)
        return self.to_mean(x[:, 0]), (self.to_log_variance(x[:, 1]).clamp(-20, 10) / 2).exp()

    def decode(self, latent: Tensor) -> Tensor:
        """The chunk of a latent vector, (batch, horizon, dim)."""
        memory = self.from_latent(latent)[:, None]
        x = self.queries.expand(len(latent), -1, -1)
        for layer in self.decoder:
            x = layer(x, memory)
        actions: Tensor = self.to_actions(x)
        return actions

    def forward(self, actions: Tensor) -> Tensor:
        """The chunk as the mean latent tells it."""
        return self.decode(self.encode(actions)[0])


@dataclass(frozen=True)
class LatentReference:
    """A mixture of Gaussians: `mean` and `std` (modes, latent) and `weights` (modes,)."""

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def standard(cls, latent: int) -> LatentReference:
        """The normal law of mean 0 and deviation 1."""
        return cls(torch.zeros(1, latent), torch.ones(1, latent), torch.ones(1))

    @classmethod
    def from_data(
        cls, vae: nn.Module, data: Iterable[Any], *, modes: int = 1, noised: int = 3, seed: int = 0
    ) -> LatentReference:
        """The average mean and deviation that `vae` gives the chunks of `data`, batches with `actions`.

        Chunks are noised a little, at a random one of the first `noised` of ten levels of the cosine schedule; 0 leaves
        them as they are. With `modes` above 1 there is one for each cluster of means.
        """
        generator, found = Generator().manual_seed(seed), []
        with torch.no_grad(), evaluating(vae):
            for batch in data:
                actions = as_batch(batch)["actions"]
                if noised:
                    kept = _cosine(torch.randint(noised, (len(actions), 1, 1), generator=generator) + 1)
                    noise = torch.randn(actions.shape, generator=generator)
                    kept, noise = kept.to(actions), noise.to(actions)
                    actions = kept.sqrt() * actions + (1 - kept).sqrt() * noise
                found.append(vae.encode(actions))  # type: ignore[operator]
        means, stds = (torch.cat(parts) for parts in zip(*found, strict=True))
        cluster = torch.zeros(len(means), dtype=torch.long)
        if modes > 1:
            from sklearn.cluster import KMeans

            labels = KMeans(modes, n_init=4, random_state=seed).fit_predict(means.cpu().numpy())
            cluster = torch.from_numpy(labels).long()
        own = [(cluster == mode).to(means.device) for mode in range(modes)]
        return cls(
            torch.stack([means[rows].mean(0) for rows in own]),
            torch.stack([stds[rows].mean(0) for rows in own]),
            torch.stack([rows.float().mean() for rows in own]),
        )

    def log_prob(self, latent: Tensor) -> Tensor:
        """Of (batch, latent), in nats."""
        each = _normal_log_prob(latent[:, None], self.mean.to(latent), self.std.to(latent)).sum(-1)
        return (each + self.weights.to(latent).log()).logsumexp(1)

    def overlap(self, mean: Tensor, std: Tensor) -> Tensor:
        """Of each Gaussian (batch, latent) with the nearest mode, (batch,): 1 where they are one, 0 where they are far.

        The Bhattacharyya coefficient, as the geometric mean over dimensions.
        """
        own, other = self.std.to(std), std[:, None]
        both = own.square() + other.square()
        distance = (self.mean.to(mean) - mean[:, None]).square() / (4 * both)
        return (0.5 * (2 * own * other / both).log() - distance).mean(-1).exp().amax(1)

    def divergence(self, mean: Tensor, std: Tensor, kl: str, noise: Tensor) -> Tensor:
        """Of Gaussians q, (batch, latent), and this p: KL(q || p) for "reverse", KL(p || q) for "forward", (batch,).

        Exact for one mode; of a mixture KL(q || p) is estimated at the draw `noise` (batch, latent), and KL(p || q) is
        exact up to the entropy of p, which no q changes and which is left out.
        """
        own, spread = self.mean.to(mean), self.std.to(std)
        if kl == "forward":
            if len(own) == 1:
                return gaussian_kl(own, spread, mean, std)
            square = spread.square() + (own - mean[:, None]).square()
            surprise = 0.5 * square / std[:, None].square() + std[:, None].log() + 0.5 * math.log(2 * math.pi)
            return surprise.sum(-1) @ self.weights.to(mean)
        if len(own) == 1:
            return gaussian_kl(mean, std, own, spread)
        latent = mean + std * noise
        return _normal_log_prob(latent, mean, std).sum(-1) - self.log_prob(latent)


@dataclass(frozen=True, eq=False)
class VAEObjective(Objective):
    """Smooth L1 of the reconstruction, plus `kl_weight` times the divergence from `reference` (the standard normal law
    unless given) in the direction `kl`, plus `mmd_weight` times the maximum mean discrepancy of the batch's latents
    from the standard normal law. For modules with `encode` and `decode`, as `ActionVAE`.
    """

    kl_weight: float = 7.5e-5
    mmd_weight: float = 1.0
    reference: LatentReference | None = None
    kl: str = "reverse"

    def __post_init__(self) -> None:
        if self.kl not in DIRECTIONS:
            raise ValueError(f"kl must be 'reverse' or 'forward', got {self.kl!r}")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        vae: Any = model
        actions = batch["actions"]
        mean, std = vae.encode(actions)
        generator = Generator().manual_seed((step.seed * 1_000_003 + step.index) % (1 << 63))
        noise, prior = torch.randn((2, *mean.shape), generator=generator).to(mean)
        latent = mean + std * noise
        reference = self.reference or LatentReference.standard(mean.shape[1])
        parts = {
            "reconstruction": F.smooth_l1_loss(vae.decode(latent), actions),
            "kl": reference.divergence(mean, std, self.kl, noise).mean(),
            "mmd": mmd(latent, prior),
        }
        total = parts["reconstruction"] + self.kl_weight * parts["kl"] + self.mmd_weight * parts["mmd"]
        return Loss(total, _values(parts))


def gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(first || second) of diagonal Gaussians, summed over the last dimension, in nats."""
    ratio = (std / other_std).square()
    each = 0.5 * (ratio + ((mean - other_mean) / other_std).square() - 1 - ratio.log())
    return each.sum(-1)


def mmd(one: Tensor, other: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, (n, d) each, by the inverse multiquadratic kernel C / (C + s),
    where s is the squared distance averaged over dimensions and C = 4d. Unbiased: around 0 for samples of one law.
    """
    if len(one) < 2 or len(other) < 2:
        return one.sum() * 0
    scale = 4 * one.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return scale / (scale + (a[:, None] - b).square().mean(-1))

    n, m = len(one), len(other)
    within = (kernel(one, one).sum() - n) / (n * (n - 1)) + (kernel(other, other).sum() - m) / (m * (m - 1))
    return within - 2 * kernel(one, other).mean()


def _normal_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def _cosine(step: Tensor, steps: int = 10) -> Tensor:
    """What is left of the signal's variance after `step` of `steps` of the squared-cosine schedule."""
    at = torch.cos((step / steps + 0.008) / 1.008 * math.pi / 2).square()
    return at / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


def _values(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in parts.items()}
