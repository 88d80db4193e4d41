"""Latent guidance: the latent space, its divergences, the gradient, and what training with it changes and leaves."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from torch import Generator, nn
from torch.distributions import Independent, Normal, kl_divergence

import monochord as mc
from monochord.adapt.action_vae import ActionVAE, LatentReference, VAEObjective, gaussian_kl, mmd
from monochord.adapt.latent_guidance import (
    GuidedDiffusionLoss,
    LatentGuidance,
    clean_of,
    factors,
    levels,
    target_of,
)
from monochord.adapt.lora import LoRA
from monochord.core.objective import Step
from monochord.testing import check_objective

DDPM = diffusers.DDPMScheduler
KINDS = ("epsilon", "sample", "v_prediction", "flow")


class Policy(nn.Module):
    """Chunks (batch, 8, 3) and a condition of 5 numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(24 + 5 + 1, 16), nn.Linear(16, 24)

    def forward(self, noisy, timestep, condition):
        x = torch.cat([noisy.flatten(1), condition, timestep[:, None].to(noisy) / 50], 1)
        return self.out(self.inner(x).tanh()).reshape(noisy.shape)


def vae(**options):
    return ActionVAE(3, 8, 4, **{"width": 16, "layers": 3, "heads": 2, **options})


def batch(n=6):
    g = Generator().manual_seed(1)
    return {"actions": torch.randn(n, 8, 3, generator=g).tanh(), "condition": torch.randn(n, 5, generator=g)}


def scheduler(kind="epsilon"):
    if kind == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(50)
    return DDPM(50, beta_schedule="squaredcos_cap_v2", prediction_type=kind)


def tuned(guidance, kind="epsilon", **options):
    policy = Policy()
    mc.fit(policy, [batch()], GuidedDiffusionLoss(scheduler(kind), guidance), steps=3, lr=1e-2, progress=False,
           device="cpu", **options)  # fmt: skip
    return policy.state_dict()


# ---------------------------------------------------------------- the latent space


def test_divergences_are_those_of_torch_in_both_directions():
    g = Generator().manual_seed(0)
    mean, std = torch.randn(5, 4, generator=g).double(), torch.rand(5, 4, generator=g).double() + 0.2
    p = LatentReference(
        torch.randn(1, 4, generator=g).double(), torch.tensor([[0.5, 1, 2, 0.3]]).double(), torch.ones(1)
    )
    q_law, p_law = Independent(Normal(mean, std), 1), Independent(Normal(p.mean, p.std), 1)
    noise = torch.zeros(5, 4).double()
    torch.testing.assert_close(p.divergence(mean, std, "reverse", noise), kl_divergence(q_law, p_law))
    torch.testing.assert_close(p.divergence(mean, std, "forward", noise), kl_divergence(p_law, q_law))
    torch.testing.assert_close(p.log_prob(mean), p_law.log_prob(mean))
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    one, other = Normal(mean[0, 0], std[0, 0]), Normal(p.mean[0, 0], p.std[0, 0])
    whole = torch.trapezoid(one.log_prob(x).exp() * (one.log_prob(x) - other.log_prob(x)), x)
    torch.testing.assert_close(gaussian_kl(mean[:1, :1], std[:1, :1], p.mean[:, :1], p.std[:, :1])[0], whole)


def test_a_mixture_of_one_law_twice_is_that_law():
    g = Generator().manual_seed(0)
    mean, std = torch.randn(400, 2, generator=g) * 0.1, torch.full((400, 2), 0.7)
    one = LatentReference.standard(2)
    two = LatentReference(one.mean.repeat(2, 1), one.std.repeat(2, 1), torch.full((2,), 0.5))
    noise = torch.randn(400, 2, generator=g)
    exact = one.divergence(mean, std, "reverse", noise)
    assert two.divergence(mean, std, "reverse", noise).mean().item() == pytest.approx(exact.mean().item(), abs=0.06)
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(
        two.divergence(mean, std, "forward", noise) - entropy, one.divergence(mean, std, "forward", noise)
    )


@pytest.mark.parametrize("kl,seeks", [("reverse", True), ("forward", False)])
def test_one_direction_seeks_a_mode_and_the_other_covers_both(kl, seeks):
    reference = LatentReference(torch.tensor([[-3.0], [3.0]]), torch.full((2, 1), 0.5), torch.tensor([0.5, 0.5]))
    mean = torch.tensor([[0.3]], requires_grad=True)
    log_std = torch.zeros(1, 1, requires_grad=True)
    optimizer, g = torch.optim.Adam([mean, log_std], 0.05), Generator().manual_seed(0)
    for _ in range(250):
        optimizer.zero_grad()
        noise = torch.randn(256, 1, generator=g)
        law = mean.expand(256, 1), log_std.exp().expand(256, 1)
        reference.divergence(*law, kl, noise).mean().backward()
        optimizer.step()
    latents = mean + log_std.exp() * torch.randn(1, 5000, generator=g)
    inside = max(float(((latents - place).abs() < 1).float().mean()) for place in (-3, 3))  # two deviations of a mode
    assert inside > 0.9 if seeks else inside < 0.5


def test_mmd_is_zero_in_the_mean_for_one_law_and_above_for_a_shifted_one():
    g = Generator().manual_seed(0)
    same = torch.stack([mmd(torch.randn(40, 3, generator=g), torch.randn(40, 3, generator=g)) for _ in range(60)])
    assert abs(float(same.mean())) < 3 * float(same.std()) / 60**0.5
    shifted = mmd(torch.randn(40, 3, generator=g) + 1, torch.randn(40, 3, generator=g))
    assert shifted > same.max()
    assert mmd(torch.randn(1, 3), torch.randn(1, 3)) == 0


def smooth(n, seed):
    """Chunks (n, 8, 3) of three numbers: waves of any amplitude."""
    g = Generator().manual_seed(seed)
    time = torch.linspace(0, 1, 8)[:, None]
    a, b, c = torch.rand(3, n, 1, 1, generator=g) * 2 - 1
    return torch.cat([a * (1 - time), b * (3 * time).sin(), c + 0 * time], 2)


def test_held_out_chunks_are_told_from_their_latents_to_a_twentieth_of_the_variance():
    net, rows = vae(width=32, layers=1), smooth(512, 0)
    data = [{"actions": part} for part in rows.split(64)]
    mc.fit(net, data, VAEObjective(), steps=300, lr=3e-3, schedule="cosine", progress=False, device="cpu")
    test = smooth(200, 1)
    with torch.no_grad():
        error = (net(test) - test).square().mean() / test.var()
    assert error < 0.05
    reference = LatentReference.from_data(net, data)
    near, far = net.encode(test), net.encode(test + 3)
    assert reference.overlap(*near).mean() > reference.overlap(*far).mean()
    own = LatentReference(near[0][:1], near[1][:1], torch.ones(1))
    torch.testing.assert_close(own.overlap(near[0][:1], near[1][:1]), torch.ones(1))
    both = LatentReference.from_data(net, [{"actions": torch.cat([test, test + 5])}], modes=2, noised=0)
    assert both.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.05) and not torch.equal(both.mean[0], both.mean[1])


def test_the_vae_is_trained_by_its_objective_and_all_of_it():
    net = vae()
    for kl in ("reverse", "forward"):
        objective = VAEObjective(kl_weight=1.0, reference=LatentReference.standard(4), kl=kl)
        check_objective(objective, net, batch())
        objective(net, batch()).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not torch.equal(vae(seed=1).tokens, vae().tokens) and torch.equal(vae().tokens, vae().tokens)
    with pytest.raises(ValueError, match=r"this VAE takes \(8, 3\)"):
        net.encode(torch.zeros(2, 8, 4))
    with pytest.raises(ValueError, match="must be odd"):
        vae(layers=2)
    with pytest.raises(ValueError, match="'reverse' or 'forward'"):
        VAEObjective(kl="backward")


# ---------------------------------------------------------------- the gradient and the term


def test_the_gradient_is_that_of_the_energy_by_finite_differences():
    net, g = vae().double(), Generator().manual_seed(0)
    guidance = LatentGuidance(net)
    noisy, clean = torch.randn(2, 2, 8, 3, generator=g).double()
    noise = torch.randn(2, 4, generator=g).double()

    def energy(chunk):
        (mean, std), (mean0, std0) = net.encode(chunk), net.encode(clean)
        return -((mean + std * noise - mean0 - std0 * noise) ** 2).mean(1).sum()

    found, step = guidance.gradient(noisy, clean, noise), 1e-5
    for place in ((0, 0, 0), (0, 5, 2), (1, 7, 1), (1, 3, 0)):
        moved = torch.zeros_like(noisy)
        moved[place] = step
        by_hand = (energy(noisy + moved) - energy(noisy - moved)) / (2 * step)
        assert float(found[place]) == pytest.approx(float(by_hand), abs=1e-5) and abs(float(by_hand)) > 1e-6
    assert guidance.gradient(clean, clean, noise).abs().max() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_clamped_scaled_and_exactly_zero_where_actions_are_padding(kind):
    mask = torch.tensor([True, True, False])
    _, _, alpha, sigma = levels(scheduler(kind))
    clean, g = batch(50)["actions"], Generator().manual_seed(0)
    alpha, sigma = (v.reshape(-1, 1, 1) for v in (alpha, sigma))
    noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=g)
    term = LatentGuidance(vae(), 3.0, clamp=0.01, mask=mask).term(noisy, clean, alpha, sigma, kind, g)
    assert torch.isfinite(term).all() and term.abs().max() <= 3.0 * 0.01 and term[..., :2].any()
    assert not term[..., 2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_term_of_any_kind_moves_the_clean_estimate_by_the_same_step(kind):
    """A gradient moves the expected clean chunk by sigma^2 / alpha times itself, whatever the net predicts."""
    g = Generator().manual_seed(0)
    alpha = torch.tensor(0.6).double()
    sigma = 1 - alpha if kind == "flow" else (1 - alpha**2).sqrt()
    clean, noise, gradient = torch.randn(3, 2, 8, 3, generator=g).double()
    noisy, target = alpha * clean + sigma * noise, target_of(clean, noise, alpha, sigma, kind)
    torch.testing.assert_close(clean_of(target, noisy, alpha, sigma, kind), clean)
    moved = clean_of(target + factors(alpha, sigma, kind) * gradient, noisy, alpha, sigma, kind)
    torch.testing.assert_close(moved - clean, sigma**2 / alpha * gradient)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_targets_are_those_of_diffusers(kind):
    own, clean = scheduler(kind), batch()["actions"]
    noise, times = torch.randn(clean.shape, generator=Generator().manual_seed(0)), torch.arange(6) * 8
    _, _, alpha, sigma = levels(own)
    alpha, sigma = (v[times].reshape(-1, 1, 1) for v in (alpha, sigma))
    torch.testing.assert_close(alpha * clean + sigma * noise, own.add_noise(clean, noise, times))
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": own.get_velocity(clean, noise, times)}
    torch.testing.assert_close(target_of(clean, noise, alpha, sigma, kind), wanted[kind])


def test_flow_levels_are_those_of_diffusers():
    own = scheduler("flow")
    _, times, alpha, sigma = levels(own)
    clean = batch()["actions"]
    noise = torch.randn(clean.shape, generator=Generator().manual_seed(0))
    for i in (0, 20, 49):
        wanted = own.scale_noise(clean, times[i : i + 1].expand(6), noise)
        torch.testing.assert_close(alpha[i] * clean + sigma[i] * noise, wanted)
    sampled = scheduler("flow")
    sampled.set_timesteps(4)
    torch.testing.assert_close(levels(sampled)[1], times)


# ---------------------------------------------------------------- training and sampling


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_it_is_plain_tuning_to_the_bit_and_the_vae_stays(kind):
    net = vae()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    plain = tuned(None, kind)
    for same in (LatentGuidance(net, 0.0), LatentGuidance(net, 3.0, at="sample")):
        found = tuned(same, kind)
        assert all(torch.equal(found[name], p) for name, p in plain.items())
    guided = tuned(LatentGuidance(net, 3.0), kind)
    assert any(not torch.equal(guided[name], p) for name, p in plain.items())
    assert all(torch.equal(net.state_dict()[name], p) for name, p in before.items())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_clean_chunk_whatever_the_target_is(kind):
    """A net that knows the target is told minus the term; the term of the clean chunk, not that of the target."""
    seen = {}

    class Spy(LatentGuidance):
        def term(self, noisy, clean, *rest):
            seen["clean"] = clean
            seen["term"] = super().term(noisy, clean, *rest)
            return seen["term"]

    class Knows(nn.Module):
        def forward(self, noisy, timestep, condition):
            alpha, sigma = (v[index].reshape(-1, 1, 1) for v in (own[2], own[3]))
            noise = (noisy - alpha * clean) / sigma
            return target_of(clean, noise, alpha, sigma, kind)

    own, clean = levels(scheduler(kind)), batch()["actions"]
    g = Generator().manual_seed(5)
    index = torch.randint(len(own[1]), (6,), generator=g)
    loss = GuidedDiffusionLoss(scheduler(kind), Spy(vae(), 3.0))(Knows(), batch(), Step(5))
    torch.testing.assert_close(seen["clean"], clean)
    torch.testing.assert_close(loss.total, seen["term"].square().mean(), rtol=1e-3, atol=1e-6)


def test_it_is_an_objective_on_any_batch_and_says_what_is_missing():
    guided = GuidedDiffusionLoss(scheduler(), LatentGuidance(vae()))
    check_objective(guided, Policy(), batch())
    assert {"guided_diffusion_loss", "guidance"} == set(guided(Policy(), batch()).terms)
    with pytest.raises(ValueError, match="pass clean= its name"):
        guided(Policy(), {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="train, sample, both"):
        LatentGuidance(vae(), at="test")
    with pytest.raises(ValueError, match="must be above 0"):
        LatentGuidance(vae(), clamp=0)
    with pytest.raises(ValueError, match="neither alphas_cumprod nor scale_noise"):
        GuidedDiffusionLoss(diffusers.EDMEulerScheduler())


def test_pictures_take_the_same_loss():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    check_objective(GuidedDiffusionLoss(scheduler(), clean="pictures"), unet, {"pictures": torch.randn(3, 1, 8, 8)})


def test_low_rank_changes_alone_are_trained_by_it():
    policy = Policy()
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    low_rank = LoRA("**.weight", rank=2).attach(policy)
    mc.fit(policy, [batch()], GuidedDiffusionLoss(scheduler(), LatentGuidance(vae())), steps=3, lr=1e-2,
           progress=False, device="cpu")  # fmt: skip
    assert all(change.delta().abs().sum() > 0 for _, change in low_rank.placements)
    low_rank.detach()
    assert all(torch.equal(policy.state_dict()[name], p) for name, p in before.items())


def test_under_bf16_the_guidance_is_that_of_float32():
    guidance, g = LatentGuidance(vae()), Generator().manual_seed(0)
    noisy, clean = torch.randn(2, 6, 8, 3, generator=g)
    noise = torch.randn(6, 4, generator=g)
    plain = guidance.gradient(noisy, clean, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guidance.gradient(noisy, clean, noise), plain)
    assert plain.dtype == torch.float32
    assert all(torch.isfinite(p).all() for p in tuned(guidance, precision="bf16").values())


@pytest.mark.parametrize("kind", KINDS)
def test_at_sampling_the_policys_own_estimate_stands_for_the_demonstration(kind):
    """The first prediction of a policy is moved only where guidance says so, up the energy."""
    policy, condition = Policy(), batch()["condition"]
    noisy = torch.randn(6, 8, 3, generator=Generator().manual_seed(0))
    own = scheduler(kind)
    time = levels(own)[1][25]
    with torch.no_grad():
        plain = GuidedDiffusionLoss(own).predictor(policy, condition)(noisy, time)
        for at, changes in (("train", False), ("sample", True), ("both", True)):
            loss = GuidedDiffusionLoss(own, LatentGuidance(vae(), at=at))
            assert torch.equal(loss.predictor(policy, condition)(noisy, time), plain) != changes
    rows = slice(2, 4)
    one = GuidedDiffusionLoss(own).predictor(policy, condition)(noisy[rows], time, rows)
    torch.testing.assert_close(one, plain[rows])


@pytest.mark.parametrize("make", [diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler,
                                  diffusers.EulerDiscreteScheduler])  # fmt: skip
def test_schedulers_of_diffusers_sample_with_guidance(make):
    from monochord.diffusion.sampling import denoise

    own = make(50, beta_schedule="linear")
    loss = GuidedDiffusionLoss(own, LatentGuidance(vae(), at="both"))
    noise = torch.randn(6, 8, 3, generator=Generator().manual_seed(0))
    found = [denoise(loss.predictor(Policy(), batch()["condition"]), noise, own, 4) for _ in range(2)]
    assert torch.equal(*found) and found[0].shape == noise.shape and torch.isfinite(found[0]).all()
