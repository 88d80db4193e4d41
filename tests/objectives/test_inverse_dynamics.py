"""Objectives on transitions: what they see, what they train, and that pairs stay within an episode."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import monochord as mc
from monochord.data import DataError
from monochord.data.trajectories import Trajectories
from monochord.objectives.inverse_dynamics import (
    BehaviorCloning,
    ForwardDynamics,
    InverseDynamics,
    StaticContrast,
    TransitionModel,
    info_nce,
    jittered,
)
from monochord.objectives.spatial_softmax import PixelDecoder, SpatialSoftmaxEncoder, encoded
from monochord.testing import check_objective


def batch(n=16):
    g = torch.Generator().manual_seed(0)
    seen, action = torch.randn(n, 5, generator=g), torch.randn(n, 2, generator=g)
    return {"observation": seen, "action": action, "next_observation": torch.randn(n, 5, generator=g)}


def model():
    torch.manual_seed(0)
    return TransitionModel(nn.Linear(5, 4), 4, 2, hidden=16, projection=8)


@pytest.mark.parametrize(
    "objective,head",
    [(InverseDynamics(), "inverse"), (BehaviorCloning(), "policy"), (ForwardDynamics(), "forward_"),
     (StaticContrast(lambda x: x + 0.1), "view")],
)  # fmt: skip
def test_each_trains_the_encoder_and_its_own_head(objective, head):
    net = model()
    check_objective(objective, net, batch())
    objective(net, batch()).total.backward()
    reached = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert "encoder" in reached and all(name.startswith((head, "encoder")) for name in reached)
    with pytest.raises(ValueError, match="wrap its encoder in a TransitionModel"):
        objective(nn.Linear(5, 4), batch())


def test_cloning_does_not_see_what_comes_next_and_inverse_dynamics_does():
    net, one = model(), batch()
    other = {**one, "next_observation": one["next_observation"] + 1}
    assert BehaviorCloning()(net, one).total == BehaviorCloning()(net, other).total
    assert InverseDynamics()(net, one).total != InverseDynamics()(net, other).total


def test_the_action_between_two_positions_is_learnt():
    g, net = torch.Generator().manual_seed(1), model()
    seen, action = torch.randn(256, 5, generator=g), torch.randn(256, 2, generator=g)
    after = torch.cat([seen[:, :2] + action, seen[:, 2:]], 1)
    data = [{"observation": seen, "action": action, "next_observation": after}]
    losses = {}
    for objective in (InverseDynamics(), BehaviorCloning()):
        net = model()
        history = mc.fit(net, data, objective, steps=120, lr=1e-2, progress=False, device="cpu")
        losses[type(objective).__name__] = history.losses[-1]
    assert losses["InverseDynamics"] < 0.1 < 0.3 < losses["BehaviorCloning"]


def test_equal_projections_cost_the_log_of_the_batch():
    same = torch.ones(7, 3)
    assert float(info_nce(same, same)) == pytest.approx(math.log(7), abs=1e-6)
    apart = torch.eye(7)
    assert float(info_nce(apart, apart, 0.01)) < 1e-6


@pytest.mark.parametrize("steps", [1, 3])
def test_pairs_stay_within_an_episode(steps):
    episodes = np.repeat([0, 1, 4], [5, 3, 4])
    seen = np.stack([episodes, np.concatenate([np.arange(5), np.arange(3), np.arange(4)])], 1).astype(np.float32)
    known = Trajectories(seen, seen[:, 1:] * 10, np.zeros(12), np.zeros(12, bool), episodes)
    found = known.transitions(steps)
    assert len(found["action"]) == sum(max(n - steps, 0) for n in (5, 3, 4))
    assert (found["observation"][:, 0] == found["next_observation"][:, 0]).all()
    assert (found["next_observation"][:, 1] - found["observation"][:, 1] == steps).all()
    assert (found["action"][:, 0] == 10 * found["observation"][:, 1]).all()
    with pytest.raises(DataError, match="no episode has more than 7"):
        known.transitions(7)


def pixels(n=6):
    g = torch.Generator().manual_seed(0)
    seen, after = (torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8, generator=g) for _ in range(2))
    return {"observation": seen, "action": torch.randn(n, 2, generator=g), "next_observation": after}


def seer(**options):
    torch.manual_seed(0)
    return TransitionModel(SpatialSoftmaxEncoder(16, (4, 4), keypoints=4, width=8), 8, 2, hidden=16, **options)


def test_explicit_forward_dynamics_make_the_next_picture_and_need_a_decoder():
    net, batch = seer(decoder=PixelDecoder(10, side=16, channels=4)), pixels()
    check_objective(ForwardDynamics("explicit"), net, batch)
    ForwardDynamics("explicit")(net, batch).total.backward()
    reached = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "decoder"}
    made = net.decoder(torch.cat([net.encoder(batch["observation"]), batch["action"]], 1))
    perfect = {**batch, "next_observation": made.detach()}
    losses = [ForwardDynamics("explicit")(net, known).total.item() for known in (perfect, batch)]
    assert losses[0] < 1e-10 and losses[1] > 1e-3
    with pytest.raises(ValueError, match="such as a PixelDecoder"):
        ForwardDynamics("explicit")(seer(), batch)
    with pytest.raises(ValueError, match="not 'implicit'"):
        ForwardDynamics("implicit")


def test_equal_embeddings_leave_contrastive_objectives_at_the_log_of_the_batch():
    net, same = seer(), {name: value[:1].expand(6, *value.shape[1:]) for name, value in pixels().items()}
    for objective in (ForwardDynamics(), StaticContrast(lambda x: x)):
        assert float(objective(net, same).total.detach()) == pytest.approx(math.log(6), abs=1e-5)


def test_dropout_is_in_the_heads_and_only_while_training():
    net, batch = seer(dropout=0.5), pixels()
    assert InverseDynamics()(net.train(), batch).total != InverseDynamics()(net, batch).total
    assert InverseDynamics()(net.eval(), batch).total == InverseDynamics()(net, batch).total


def test_a_policy_on_a_frozen_encoder_is_the_one_on_embeddings_made_ahead():
    batch, net = pixels(), seer()
    net.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    ahead = TransitionModel(nn.Identity(), 8, 2, hidden=16)
    ahead.policy.load_state_dict(net.policy.state_dict())
    ready = {**batch, "observation": encoded(net.encoder, batch["observation"])}
    for model, data in ((net, batch), (ahead, ready)):
        mc.fit(model, [data], BehaviorCloning(), steps=5, lr=1e-2, progress=False, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())
    for one, other in zip(net.policy.parameters(), ahead.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_pictures_of_one_row_are_jittered_alike_and_rows_each_their_own_way():
    picture = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(0))
    same = jittered(picture.expand(40, 2, 3, 10, 12), torch.Generator().manual_seed(1))
    assert torch.equal(same[:, 0], same[:, 1]) and len(same[:, 0].unique(dim=0)) == 40
    inner, found = picture[:, 2:-2, 2:-2], set()
    for made in same[:, 0]:  # each is the picture from one of nine places, its channels scaled and shifted
        for y in range(1, 4):
            for x in range(1, 4):
                seen = made[:, y : y + 6, x : x + 8].flatten(1)
                if all(abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) > 0.9999
                       for a, b in zip(seen, inner.flatten(1), strict=True)):  # fmt: skip
                    found.add((y, x))
    assert len(found) == 9
