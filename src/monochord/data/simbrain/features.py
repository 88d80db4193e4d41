"""The feature banks that simulated voxels respond to: Gabor energies, patches of a small CNN, caption embeddings.

They are the simulator's own. A method under test must take its features from another network or seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monochord.core.cache import cached
from monochord.data.simbrain.scenes import CATEGORIES, all_captions, scenes

if TYPE_CHECKING:
    from torch import nn

GRID = 16  # features lie on 16 by 16 places of 4 by 4 pixels
SCALES = (4, 8, 16, 32)  # wavelengths in pixels
ORIENTATIONS = 6
CHANNELS = 32  # of the CNN
SEMANTIC = 32  # dimensions of a caption
TRAINING, STEPS, BATCH = 800, 150, 32  # scenes and steps of the CNN
OWN = 77_003  # the scenes of the CNN and of the components are not those of any experiment

Encode = Callable[[Sequence[str]], np.ndarray]


def gabor_energies(images: np.ndarray) -> np.ndarray:
    """Quadrature Gabor energies of (n, 64, 64, 3) uint8 images: (n, 24, 256), scales by orientations at each place.

    The coarser scales are the same filters, of a wavelength of four pixels, on halved images.
    """
    import torch
    from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

    filters = torch.from_numpy(_gabors()).float()[:, None]
    half = filters.shape[-1] // 2
    energies = []
    for block in np.array_split(images, max(1, len(images) // 256)):
        grey = torch.from_numpy(block.astype(np.float32).mean(axis=3) / 255)[:, None]
        found = []
        for _ in SCALES:
            even, odd = conv2d(pad(grey, (half,) * 4, mode="replicate"), filters).chunk(2, dim=1)
            energy = torch.sqrt(even.square() + odd.square())
            size = energy.shape[-1]
            found.append(avg_pool2d(energy, size // GRID) if size >= GRID else interpolate(energy, (GRID, GRID)))
            grey = avg_pool2d(grey, 2)
        energies.append(torch.cat(found, dim=1).flatten(2).numpy())
    return np.concatenate(energies)


def _gabors() -> np.ndarray:
    """Six even filters and six odd ones, (12, 9, 9), each of mean 0 and norm 1."""
    y, x = np.mgrid[-4:5, -4:5]
    window = np.exp(-(x**2 + y**2) / (2 * 2.0**2))
    angles = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
    waves = [2 * np.pi / SCALES[0] * (x * np.cos(angle) + y * np.sin(angle)) for angle in angles]
    filters = np.stack([window * np.cos(w) for w in waves] + [window * np.sin(w) for w in waves])
    filters -= window * (filters.sum(axis=(1, 2), keepdims=True) / window.sum())
    return filters / np.sqrt(np.square(filters).sum(axis=(1, 2), keepdims=True))


@dataclass(frozen=True)
class Features:
    """The banks of one simulator: `seed` is that of its CNN, `encode` its sentence encoder (texts to vectors).

    Without `encode` captions are read by MiniLM. The CNN learns which category covers each place of scenes of its
    own; it is trained once, in seconds, and cached, as are the caption embeddings of MiniLM.
    """

    seed: int = 0
    encode: Encode | None = None

    def energies(self, images: np.ndarray) -> np.ndarray:
        """Gabor energies (n, 24, 256), each channel of mean 1 over the simulator's own scenes."""
        return gabor_energies(images) / self._energy_scale[None, :, None]

    def patches(self, images: np.ndarray) -> np.ndarray:
        """Features of the CNN (n, 32, 256), each channel of mean 0 and sd 1 over the simulator's own scenes."""
        mean, sd = self._cnn["mean"], self._cnn["sd"]
        return (_run(_network(self._cnn), images) - mean[:, None]) / sd[:, None]

    def meanings(self, captions: Sequence[str]) -> np.ndarray:
        """Caption embeddings (n, 32): principal components, each of sd 1 over the simulator's own captions."""
        mean, axes = self._components
        return (self._embed(captions) - mean) @ axes

    @property
    def queries(self) -> np.ndarray:
        """What each category looks for among the patches, (5, 32), of norm 1."""
        return self._cnn["queries"]

    @cached_property
    def _energy_scale(self) -> np.ndarray:
        return gabor_energies(scenes(200, OWN + self.seed).images).mean(axis=(0, 2))

    @cached_property
    def _components(self) -> tuple[np.ndarray, np.ndarray]:
        vectors = self._embed(scenes(500, OWN).captions)
        mean = vectors.mean(axis=0)
        power, axes = np.linalg.eigh(np.cov((vectors - mean).T))
        power, axes = power[::-1][:SEMANTIC], axes[:, ::-1][:, :SEMANTIC]
        axes = axes / np.sqrt(np.where(power > 1e-6 * power[0], power, np.inf))
        return mean, axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(SEMANTIC)])

    def _embed(self, captions: Sequence[str]) -> np.ndarray:
        known = {caption: row for row, caption in enumerate(all_captions())}
        if self.encode is None and set(captions) <= set(known):  # all are read once, then every subject is quick
            return _minilm(all_captions())[[known[caption] for caption in captions]].astype(np.float64)
        unique, index = np.unique(np.asarray(captions), return_inverse=True)
        return (self.encode or _minilm)(unique.tolist())[index].astype(np.float64)

    @cached_property
    def _cnn(self) -> dict[str, np.ndarray]:
        key = f"simbrain/patches-{self.seed}-1"
        with np.load(cached(key, lambda folder: _train(self.seed, folder)) / "weights.npz") as file:
            return dict(file)


@cache
def features_of(seed: int, encode: Encode | None) -> Features:
    """The banks of a seed; what they have learnt is kept for the next simulator of that seed."""
    return Features(seed, encode)


def _minilm(captions: Sequence[str]) -> np.ndarray:
    """MiniLM's mean-pooled sentence vectors (n, 384), kept in the cache under the captions' digest."""
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()

    def build(folder: Path) -> None:
        import torch

        from monochord.models import load, processor

        model, tokenizer = load("minilm"), processor("minilm")
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        found: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for rows in np.array_split(order, len(captions) // 64 + 1):
                batch = tokenizer([captions[row] for row in rows], padding=True, return_tensors="pt")
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None]
                found |= zip(rows.tolist(), ((hidden * mask).sum(1) / mask.sum(1)).numpy(), strict=True)
        np.save(folder / "vectors.npy", np.stack([found[row] for row in range(len(captions))]))

    return np.load(cached(f"simbrain/captions-{digest[:16]}", build) / "vectors.npy")


def _network(weights: dict[str, np.ndarray] | None = None) -> nn.Sequential:
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, CHANNELS, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, len(CATEGORIES) + 1, 1),
    )
    if weights is not None:
        network.load_state_dict({name: torch.from_numpy(weights[name]) for name in network.state_dict()})
    return network


def _run(network: Any, images: np.ndarray) -> np.ndarray:
    """The last hidden features, (n, 32, 256)."""
    import torch

    with torch.inference_mode():
        blocks = np.array_split(images, max(1, len(images) // 256))
        return np.concatenate([network[:-1](_pixels(block)).flatten(2).numpy() for block in blocks])


def _pixels(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _train(seed: int, folder: Path) -> None:
    """Learn which category covers most of each place, or none, and note the features' statistics."""
    import torch
    from torch.nn.functional import cross_entropy

    own = scenes(TRAINING, OWN + seed)
    covered = own.labels.reshape(TRAINING, GRID, 4, GRID, 4)  # type: ignore[union-attr]
    shares = np.stack([(covered == k).mean(axis=(2, 4)) for k in range(len(CATEGORIES) + 1)], axis=1)
    targets = torch.from_numpy(shares.argmax(axis=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    balance = torch.tensor([0.3] + [1.0] * len(CATEGORIES))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(TRAINING, (BATCH,), generator=generator)
        loss = cross_entropy(network(_pixels(own.images[rows.numpy()])), targets[rows], weight=balance)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    features = _run(network, own.images)
    mean, sd = features.mean(axis=(0, 2)), features.std(axis=(0, 2)) + 1e-3
    flat = ((features - mean[:, None]) / sd[:, None]).transpose(0, 2, 1).reshape(-1, CHANNELS)
    place = targets.flatten().numpy()
    queries = np.stack([flat[place == k + 1].mean(axis=0) for k in range(len(CATEGORIES))])
    queries -= flat.mean(axis=0)
    queries /= np.sqrt(np.square(queries).sum(axis=1, keepdims=True))
    np.savez(folder / "weights.npz", **weights, mean=mean, sd=sd, queries=queries)
