"""The family adapt beside its peers, at equal counts of trained numbers on the same nets.

    python benchmarks/adapt.py

LoRA on kernels, prompts, random entries and shared random maps against peft: time of a step, what is kept for the
backward pass, peak memory, accuracy (each at the best of three rates by validation, mean of three seeds). Then bytes
that S2A keeps beside checkpointing, SaRA's memory beside LoRA's, Tucker products beside tensorly's, random subspaces
beside a dense projection, and Lyapunov exponents beside what is known of them.
"""

import argparse
from collections.abc import Callable
from functools import cache

import torch
from timing import Report, optional, peak, ratios, rise
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification, ViTConfig, ViTForImageClassification

import monochord as mc
from monochord.adapt import S2A, FullTuning, LoRA, PromptTokens, RandomParameters, SaRA, SubspaceTuning
from monochord.core.compressed import compressed
from monochord.core.fastfood import Fastfood
from monochord.core.memory import SavedActivations
from monochord.core.tucker import Tucker
from monochord.lab.problem import Problem, classes, copied, gradient
from monochord.read.lyapunov import lyapunov_spectrum, mamba_exponents, mamba_steps

TARGETS, SITES = ["query", "value"], "blocks.*.attn.{q,v}.weight"
KERNELS = "blocks.**.convolution.weight"
SHIRA_RANK, VERA_RANK, FREQUENCIES = 8, 64, 448
N_SHIRA, N_MAPS = 12 * SHIRA_RANK * 768, 12 * 448  # of six layers' queries and values
RATES, SEEDS, STEPS = (1e-3, 5e-3, 2e-2), (0, 1, 2), 40
Change = Callable[[nn.Module], nn.Module]


def ours(tuner) -> Change:
    def change(model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        tuner.attach(model, seed=0)
        return model

    return change


def theirs(name: str, **options) -> Change:
    def change(model: nn.Module) -> nn.Module:
        import peft

        return peft.get_peft_model(model, getattr(peft, name)(**options))

    return change


PAIRS: dict[str, dict[str, Change]] = {
    "LoRA on kernels": {
        "peft": theirs("LoraConfig", r=4, lora_alpha=8, target_modules=r".*stages.*\.convolution"),
        "monochord": ours(LoRA(KERNELS, rank=4, alpha=8.0)),
    },
    "prompt of 20": {
        "peft": theirs("PromptTuningConfig", task_type="SEQ_CLS", num_virtual_tokens=20),
        "monochord": ours(PromptTokens(20)),
    },
    "random entries": {
        "peft SHiRA": theirs("ShiraConfig", r=SHIRA_RANK, target_modules=TARGETS, random_seed=0),
        "monochord": ours(RandomParameters(n=N_SHIRA, sites=SITES)),
    },
    "shared random maps": {
        "peft VeRA": theirs("VeraConfig", r=VERA_RANK, target_modules=TARGETS),
        "peft FourierFT": theirs("FourierFTConfig", n_frequency=FREQUENCIES, target_modules=TARGETS),
        "monochord": ours(SubspaceTuning(N_MAPS, SITES)),
    },
}
ALONE: dict[str, dict[str, Change]] = {
    "SaRA": {
        "LoRA": ours(LoRA(SITES, rank=8)),
        "full tuning": ours(FullTuning(SITES)),
        "monochord": ours(SaRA(fraction=8 * 2 / 384, sites=SITES)),  # as many as LoRA's factors
    }
}
WAYS = PAIRS | ALONE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=[*PAIRS, *ALONE], help="one comparison with peers; other rows are kept")
    arguments = parser.parse_args()
    if arguments.one:
        print(rise(step_of(arguments.one[0], WAYS[arguments.one[0]][arguments.one[1]])))
        return
    report = Report(__file__)
    if arguments.only:
        beside_peers(report, arguments.only, WAYS[arguments.only], arguments.rounds)
        report.save(keep=True)
        return
    for title, ways in WAYS.items():
        beside_peers(report, title, ways, arguments.rounds)
    saved_bytes(report, arguments.rounds)
    tucker(report, arguments.rounds)
    projections(report, arguments.rounds)
    exponents(report, arguments.rounds)
    report.save()


def beside_peers(report: Report, title: str, ways: dict[str, Change], rounds: int) -> None:
    """Time, memory and (of pairs) accuracy; ours is held to the first of the others."""
    base, *_ = ways
    steps = {way: step_of(title, change) for way, change in ways.items()}
    counts = {way: trained(step.model) for way, step in steps.items()}
    report.add(f"{title}, trained numbers", "numbers", counts, None)
    report.add(f"{title}, time of a step", f"time of {base}", ratios(steps, base, rounds), 1.0)
    found = {way: size for way, step in steps.items() if (size := kept(step)) is not None}
    report.add(f"{title}, kept for the backward pass", "MiB", found, round(found[base], 2) if base in found else None)
    found = {way: peak(__file__, title, way) for way in ways}
    report.add(f"{title}, peak of a step", "MiB above the model", found, round(found[base], 2))
    if title in PAIRS:
        missed = {way: 100 - accuracy(title, change) for way, change in ways.items()}
        report.add(f"{title}, errors", "% of test rows", missed, None)


@cache
def problem(title: str, seed: int) -> Problem:
    """Digits for the convolutional net, reviews for MiniLM."""
    if title == "LoRA on kernels":
        return classes("fashion-cnn", mc.data("mnist"), seed=seed, train=400, validation=200, test=600, max_length=32)
    return classes("minilm", mc.data("movie-reviews"), seed=seed, train=640, validation=200, test=400, max_length=32)


def fresh(title: str, seed: int = 0) -> nn.Module:
    if title == "LoRA on kernels":
        return problem(title, seed).model()
    body = copied("minilm")
    torch.manual_seed(seed)
    model = BertForSequenceClassification(body.config)
    model.bert.load_state_dict(body.state_dict(), strict=False)
    return model


def trained(model: nn.Module) -> int:
    """Trained numbers, the head left out."""
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name)


def step_of(title: str, change: Change) -> Callable[[], float]:
    """A training step of 16 pictures, or of 16 texts of 64 tokens, by torch alone."""
    model = change(fresh(title)).train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20_000, (16, 64), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if title == "LoRA on kernels":
        batch = {"pixel_values": torch.randn(16, 3, 32, 32, generator=generator)}
    return stepper(model, batch)


def stepper(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    labels = torch.arange(16) % 2

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step.model = model
    return step


def kept(step: Callable[[], float]) -> float | None:
    """MiB; None where a method keeps sparse tensors, whose storage cannot be read."""
    try:
        with SavedActivations(step.model) as saved:
            step()
    except NotImplementedError:
        return None
    return saved.bytes / 2**20


def accuracy(title: str, change: Change) -> float:
    """Mean over seeds in per cent, at the rate that is best on the first seed's validation rows."""

    def run(seed: int, rate: float) -> nn.Module:
        own = problem(title, seed)
        torch.manual_seed(seed)
        model = change(fresh(title, seed))
        head = [p for name, p in model.named_parameters() if "classifier" in name]
        for parameter in head:
            parameter.requires_grad_(True)
        options = {"schedule": "linear", "warmup": 0.1, "seed": seed, "progress": False, "device": "cpu"}
        mc.fit(model, own.batches(STEPS), own.objective, steps=STEPS, update=gradient(rate, head), **options)
        return model.eval()

    first = {rate: run(SEEDS[0], rate) for rate in RATES}
    rate = max(RATES, key=lambda rate: problem(title, SEEDS[0]).score(first[rate], problem(title, SEEDS[0]).validation))
    models = [first[rate], *(run(seed, rate) for seed in SEEDS[1:])]
    owns = [problem(title, seed) for seed in SEEDS]
    return 100 * sum(own.score(model, own.test) for own, model in zip(owns, models, strict=True)) / len(SEEDS)


def saved_bytes(report: Report, rounds: int) -> None:
    """What S2A keeps as a share of full tuning, and what a step takes, in training with its dropout."""
    torch.manual_seed(0)
    vit = ViTConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=96)
    ids = torch.randint(1000, 20_000, (16, 64))
    nets = {
        "ViT, 16 pictures": (lambda: ViTForImageClassification(vit), {"pixel_values": torch.randn(16, 3, 96, 96)}),
        "MiniLM, 16 x 64 tokens": (lambda: fresh("MiniLM"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
    }
    full, s2a = ours(FullTuning("blocks.**")), ours(S2A(narrow=16))
    for net, (make, batch) in nets.items():
        steps, models = {}, {}
        for way, change in {"full": full, "checkpointing": full, "LoRA": ours(LoRA()), "monochord": s2a}.items():
            models[way] = change(make()).train()
            if way == "checkpointing":
                models[way].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            steps[way] = stepper(models[way], batch)
        with compressed(models["monochord"]):
            found = {way: kept(step) for way, step in steps.items()}
            share = {way: size / found["full"] for way, size in found.items()}
            report.add(f"S2A, kept for the backward pass, {net}", "share of full tuning's bytes", share, 0.25)
            report.add(f"S2A, time of a step, {net}", "time of full tuning", ratios(steps, "full", rounds), None)


def tucker(report: Report, rounds: int) -> None:
    """A kernel as a Tucker product: HOSVD and 20 sweeps."""
    if (tensorly := optional("tensorly")) is None:
        return
    from tensorly.decomposition import tucker as decompose

    tensorly.set_backend("pytorch")
    kernel, ranks = torch.randn(128, 64, 3, 3, generator=torch.Generator().manual_seed(0)), (8, 8, 3, 3)
    ways = {
        "tensorly": lambda: tensorly.tucker_to_tensor(decompose(kernel, list(ranks), n_iter_max=20, tol=0)),
        "monochord": lambda: Tucker.of(kernel, ranks, sweeps=20).dense(),
    }
    report.add("Tucker product of 128 x 64 x 3 x 3", "time of tensorly", ratios(ways, "tensorly", rounds), 1.0)
    missed = {way: float((run() - kernel).norm() / kernel.norm()) for way, run in ways.items()}
    report.add("Tucker product, what is left of the kernel", "share of its norm", missed, round(missed["tensorly"], 2))


def projections(report: Report, rounds: int) -> None:
    """200 numbers to a weight of 384 x 384, and back, as a training step does."""
    d, size = 200, 384 * 384
    fast, rows = Fastfood(d, size, seed=0), torch.randn(size, d)
    vector, image = torch.randn(d), torch.randn(size)
    ways = {
        "dense": lambda: (rows @ vector, rows.T @ image),
        "monochord": lambda: (fast.matvec(vector), fast.rmatvec(image)),
    }
    report.add("random projection, 200 to 147,456 and back", "time of dense", ratios(ways, "dense", rounds), 1.0)
    held = sum(tensor.nbytes for tensor in vars(fast).values() if isinstance(tensor, Tensor)) / 2**20
    report.add("random projection, what is held", "MiB", {"dense": rows.nbytes / 2**20, "monochord": held}, 4.0)


def exponents(report: Report, rounds: int) -> None:
    """The Henon map against its published exponents; Mamba's closed form against Jacobians by autograd."""

    def henon(state: Tensor, _: None) -> Tensor:
        return torch.stack([1 - 1.4 * state[0] ** 2 + state[1], 0.3 * state[0]])

    found = lyapunov_spectrum(henon, torch.tensor([0.1, 0.1], dtype=torch.float64), [None] * 20_000, washout=100)
    missed = {"monochord": float((found - torch.tensor([0.4192, -1.6232])).abs().max())}
    report.add("Lyapunov exponents of the Henon map, error", "nats a step; 0.4192 and -1.6232", missed, 0.01)

    model, batch = mc.load("mamba-1m", progress=False), {"input_ids": torch.arange(24)[None] * 50}
    name, closed = next(iter(mamba_exponents(model, batch).items()))
    rates = -model.get_submodule(name).A_log.detach().double().exp()
    steps = mamba_steps(model, batch)[name][0].double()

    def by_jacobians() -> Tensor:
        return lyapunov_spectrum(lambda state, dt: state * (dt * rates).exp(), torch.ones_like(rates), steps)

    own = closed[0].double().sort(descending=True).values
    missed = {"monochord": float((own - by_jacobians()).abs().max())}
    report.add("Mamba's exponents in closed form, error", "nats a token; Jacobians by autograd", missed, 1e-5)
    ways = {"Jacobians of one layer": by_jacobians, "monochord": lambda: mamba_exponents(model, batch)}
    found = ratios(ways, "Jacobians of one layer", rounds)
    report.add("Mamba's exponents, all layers with their forward", "time of Jacobians of one layer", found, 1.0)


if __name__ == "__main__":
    main()
