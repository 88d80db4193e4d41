"""Exponents of recurrences whose exponents are known, and of Mamba's by closed form and by its own scan."""

import math

import pytest
import torch
import transformers as hf

from monochord.read.lyapunov import (
    divergence,
    lyapunov_spectrum,
    mamba_decays,
    mamba_drift,
    mamba_exponents,
    mamba_states,
)


def test_the_logistic_map_has_log_two():
    found = lyapunov_spectrum(lambda x, _: 4 * x * (1 - x), torch.tensor([0.3], dtype=torch.float64), range(2000))
    assert float(found[0]) == pytest.approx(math.log(2), abs=0.02)


def test_a_linear_system_has_the_logs_of_its_eigenvalues():
    matrix = torch.tensor([[0.9, 0.3, 0.0], [0.0, 0.5, 0.2], [0.0, 0.0, 1.1]], dtype=torch.float64)
    found = lyapunov_spectrum(lambda x, _: matrix @ x, torch.ones(3, dtype=torch.float64), range(600), washout=100)
    torch.testing.assert_close(found, torch.tensor([1.1, 0.9, 0.5], dtype=torch.float64).log(), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="all 9 steps are washout"):
        lyapunov_spectrum(lambda x, _: x, torch.ones(1), range(9), washout=9)


def test_a_random_network_with_gain_is_chaotic_and_without_is_not():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 60, generator=generator, dtype=torch.float64) / 60**0.5
    start = torch.randn(60, generator=generator, dtype=torch.float64)
    signs = {}
    for gain in (0.5, 3.0):
        signs[gain] = float(
            lyapunov_spectrum(lambda x, _, g=gain: torch.tanh(g * weight @ x), start, range(150), washout=50)[0]
        )
    assert signs[0.5] < 0 < signs[3.0]
    apart = divergence(lambda x, _: torch.tanh(3.0 * weight @ x), start, range(60), eps=1e-9)
    closer = divergence(lambda x, _: torch.tanh(0.5 * weight @ x), start, range(60), eps=1e-9)
    assert apart[-1] - apart[0] > 3 and closer[-1] - closer[0] < -3


def _mamba(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2}
    if kind == 1:
        return hf.MambaForCausalLM(hf.MambaConfig(**sizes)).eval()
    return hf.Mamba2ForCausalLM(hf.Mamba2Config(**sizes, num_heads=4, head_dim=8, n_groups=1, chunk_size=8)).eval()


@pytest.mark.parametrize("kind", [1, 2])
def test_mamba_never_grows_and_its_states_decay_as_the_exponents_say(kind):
    model = _mamba(kind)
    batch = {"input_ids": torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(1))}
    found = mamba_exponents(model, batch)
    assert len(found) == 2
    for value in found.values():
        assert value.shape == ((2, 32, 4) if kind == 1 else (2, 4)) and (value <= 0).all()
    name = next(iter(found))
    mixer = model.get_submodule(name)
    steps = {}
    source = mixer.x_proj if kind == 1 else mixer.in_proj
    source.register_forward_hook(lambda m, a, out: steps.update(dt=out.detach()))
    model(**batch)
    rates = -mixer.A_log.exp()
    if kind == 1:
        low = steps["dt"][0, :, : mixer.dt_proj.in_features]
        dt = torch.nn.functional.softplus(mixer.dt_proj(low)).detach()  # (seq, channels)
        inputs, size = dt[:, 3], 4

        def step(state, d):
            return torch.exp(d * rates[3]) * state + d

        expected = found[name][0, 3]
    else:
        dt = torch.nn.functional.softplus(steps["dt"][..., -4:] + mixer.dt_bias)[0]
        inputs, size = dt, 4

        def step(state, d):
            return torch.exp(d * rates) * state + d

        expected = found[name][0]
    spectrum = lyapunov_spectrum(step, torch.zeros(size), inputs)
    torch.testing.assert_close(spectrum, expected.sort(descending=True).values, atol=1e-4, rtol=1e-4)


def test_a_mask_leaves_padding_out_and_other_models_are_refused():
    model = _mamba(1)
    ids = torch.randint(40, (1, 9), generator=torch.Generator().manual_seed(1))
    alone = mamba_exponents(model, {"input_ids": ids})
    padded = {"input_ids": torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)}
    padded["attention_mask"] = (torch.arange(12) < 9).long()[None]
    for name, value in mamba_exponents(model, padded).items():
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no state-space mixer"):
        mamba_exponents(torch.nn.Linear(2, 2), {})


@pytest.mark.parametrize("kind", [1, 2])
def test_states_token_by_token_go_by_the_steps_and_twins_by_their_difference(kind):
    model = _mamba(kind)
    ids = torch.randint(40, (2, 10), generator=torch.Generator().manual_seed(1))
    shape = (2, 10, 32, 4) if kind == 1 else (2, 10, 4, 1, 1)
    decay = {name: value.exp().reshape(shape) for name, value in mamba_decays(model, {"input_ids": ids}).items()}
    first = next(iter(decay))

    def push(name, state, token):
        return state + 1e-2 if name == first and token == 3 else state

    ours, theirs = list(mamba_states(model, ids)), list(mamba_states(model, ids, push))
    assert len(ours) == 10 and ours[0].keys() == decay.keys()
    whole = model(input_ids=ids, use_cache=True).cache_params.layers[0].recurrent_states
    whole = next(iter(whole.values())) if isinstance(whole, dict) else whole
    torch.testing.assert_close(ours[-1][first], whole, atol=1e-5, rtol=1e-4)
    for token in range(10):
        apart = theirs[token][first] - ours[token][first]
        expected = torch.full_like(apart, 1e-2) * decay[first][:, 4 : token + 1].prod(1) if token > 2 else 0 * apart
        torch.testing.assert_close(apart, expected, atol=1e-6, rtol=1e-3)
    coarse, fine = (mamba_drift(model, ids, bits)[first] for bits in (4, 12))
    assert coarse.shape == (10, 2) and 0 < fine.max() < coarse.max() / 30 < 0.01
    with pytest.raises(ValueError, match="no state-space mixer"):
        next(mamba_states(torch.nn.Linear(2, 2), ids))
