"""Curvature against Hessians known in full."""

import pytest
import torch
import zoo
from torch import nn

from monochord.core.curvature import Curvature, curvature
from monochord.core.objective import Loss, Objective
from monochord.objectives import NextToken


class Bowl(Objective):
    """w^T A w / 2 of the model's weight, whose Hessian is A."""

    def __init__(self, matrix):
        self.matrix = matrix

    def loss(self, model, batch, step):
        w = model.weight.flatten()
        return Loss(0.5 * w @ self.matrix @ w + w.sum())


@pytest.mark.parametrize("values", [(5.0, 1.0, 0.5, 0.0), (-7.0, 3.0, 2.0, 1.0)])
def test_trace_and_largest_eigenvalue_of_a_known_bowl(values):
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    model = nn.Linear(4, 1, bias=False)
    found = curvature(model, Bowl(turn @ torch.diag(torch.tensor(values)) @ turn.T), {}, probes=400, iterations=60)
    assert found.largest == pytest.approx(values[0], rel=1e-4) and found.count == 4
    assert abs(found.trace - sum(values)) < 4 * found.error + 1e-6
    assert found.effective_rank == pytest.approx(abs(found.trace / values[0]), rel=1e-3)


def test_of_a_diagonal_the_trace_is_exact_and_a_plane_has_none():
    model = nn.Linear(3, 1, bias=False)
    found = curvature(model, Bowl(torch.diag(torch.tensor([1.0, 2.0, 4.0]))), {}, probes=3)
    assert found.trace == pytest.approx(7, rel=1e-6) and found.error < 1e-6
    assert curvature(model, Bowl(torch.zeros(3, 3)), {}, probes=2).largest == 0
    assert Curvature(6.0, 0.0, 2.0, 100).slowdown() == pytest.approx((300 + 98) / 102 + 1)


def test_a_language_model_with_fused_attention_has_the_hessian_of_its_loss():
    model, batch = zoo.build("llama").eval(), zoo.batch("llama")
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("norm.weight"))
    found = curvature(model, NextToken(), batch, probes=200, iterations=40)
    norms = [p for p in model.parameters() if p.requires_grad]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(NextToken()(model, batch).total, norms, create_graph=True)
        flat = torch.cat([g.flatten() for g in first])
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(x, norms, retain_graph=True)]) for x in flat]
    values = torch.linalg.eigvalsh(torch.stack(rows))
    assert found.largest == pytest.approx(float(values[values.abs().argmax()]), rel=0.05)
    assert abs(found.trace - float(values.sum())) < 4 * found.error
