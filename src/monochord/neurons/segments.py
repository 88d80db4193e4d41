"""Binary memories of dendritic segments, k-winner codes, and a layer whose dendrites gate it by context.

From "How do neurons operate on sparse distributed representations? A mathematical theory of sparsity, neurons and
active dendrites", January 4, 2016. `KWinners` and `ActiveDendrites` are the trainable form that later work of the
same group used; they are an extension of the paper's theory.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn


class SegmentMemory(nn.Module):
    """Segments that each hold synapses to a few cells of what they stored, and fire on enough of them.

    `n` cells, at most `synapses` a pattern, and a `threshold`. Recognition gathers the synapses' cells: memory and
    time go with the synapses, not with `n`.
    """

    def __init__(self, n: int, synapses: int, threshold: int) -> None:
        super().__init__()
        if not 0 < threshold <= synapses <= n:
            raise ValueError(f"threshold={threshold}, synapses={synapses}, n={n}: they must not fall in this order")
        self.n, self.synapses, self.threshold = n, synapses, threshold
        self.cells: Tensor
        self.register_buffer("cells", torch.zeros(0, synapses, dtype=torch.long))

    def store(self, patterns: Tensor, generator: Generator | None = None, *, together: int = 1) -> None:
        """Add a segment for each of the boolean `patterns` (count, n), or one for every `together` of them.

        Each pattern gives `synapses` of its active cells at random. Raises `ValueError` when one has fewer.
        """
        patterns = patterns.bool()
        if int(patterns.sum(1).min()) < self.synapses:
            raise ValueError(f"a pattern has fewer than {self.synapses} active cells, too few for the synapses")
        order = torch.rand(patterns.shape, generator=generator).masked_fill(~patterns, -1.0)
        chosen = order.topk(self.synapses, dim=1).indices
        chosen = chosen.reshape(-1, together * self.synapses)
        if len(self.cells) and self.cells.shape[1] != chosen.shape[1]:
            raise ValueError("segments of one memory hold equally many patterns: use another memory")
        self.cells = torch.cat([self.cells.reshape(-1, chosen.shape[1]), chosen])

    def overlaps(self, patterns: Tensor) -> Tensor:
        """How many distinct synapses of each segment are on: (count, segments)."""
        cells = self.cells.sort(dim=1).values
        fresh = torch.ones_like(cells, dtype=torch.bool)
        fresh[:, 1:] = cells[:, 1:] != cells[:, :-1]  # two patterns may give one cell
        return torch.stack([(pattern[cells] & fresh).sum(1) for pattern in patterns.bool()])

    def recognise(self, patterns: Tensor) -> Tensor:
        """Which segments fire: boolean (count, segments)."""
        return self.overlaps(patterns) >= self.threshold


class KWinners(nn.Module):
    """Keep the `k` largest values of the last axis, set the others to zero."""

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k={k}: at least one value has to win")
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        winners = x.topk(min(self.k, x.shape[-1]), dim=-1).indices
        return torch.zeros_like(x).scatter(-1, winners, x.gather(-1, winners))


class ActiveDendrites(nn.Module):
    """A dense layer whose units are gated by the best matching of their dendrites to a context.

    `y_i = (w_i x + b_i) * sigmoid(max_j d_ij . c)`, of the largest absolute match its sign included.
    x is (..., inputs), the context (..., context).
    """

    def __init__(self, inputs: int, outputs: int, segments: int, context: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.dendrites = nn.Parameter(torch.randn(outputs, segments, context) / context**0.5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        matches = torch.einsum("...c,osc->...os", context, self.dendrites)
        best = matches.abs().argmax(-1, keepdim=True)
        gate: Tensor = torch.sigmoid(matches.gather(-1, best).squeeze(-1))
        gated: Tensor = self.linear(x) * gate
        return gated
