"""Ship a trained diffusion net as int8 rows, then measure what shipped: `reports/NAME.json`, and a sheet of samples.

Losses are mean square errors of the clean picture that the net expects, beside those of guesses that need no net.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusion_measures as measures
import numpy as np
import torch
from diffusion_training import Run
from mixture import ROOT
from safetensors.torch import load_file
from torch import Tensor

from monochord.diffusion.frechet import frechet_distance
from monochord.models.shipped import SHIPPED, read_weights, write_weights

REPORTS = Path(__file__).parent / "reports"
FIGURES = ROOT / "docs/nets"


def edm_report(run: Run, n: int = 1024) -> None:
    """Of the EDM denoiser: losses by noise level, distances of samples by number of steps."""
    import diffusion_edm

    from monochord.diffusion.sampling import sample_edm
    from monochord.models.zoo.pictures import load_edm

    torch.set_num_threads(1)
    report = _ship(run)
    model = load_edm(SHIPPED / run.name, None).eval()
    test, train = (torch.from_numpy(diffusion_edm.pictures(split)) for split in ("test", "train"))
    bands = {"0.02 to 0.1": (0.02, 0.1), "0.1 to 0.5": (0.1, 0.5), "0.5 to 2": (0.5, 2), "2 to 10": (2, 10)}
    report["held_out"] = {
        name: measures.losses_at(lambda x, s: model(x, s), test[:512], train[:5000], *ends)
        for name, ends in bands.items()
    }
    rng = np.random.default_rng(1)
    some = rng.permutation(len(train))
    features = measures.dinov2_features
    reference = features(train[some[:2048]])
    sets: dict[str, Callable[[], Tensor]] = {
        "other training pictures": lambda: train[some[2048 : 2048 + n]],
        "test pictures": lambda: test[rng.permutation(len(test))[:n]],
        "test pictures with noise of 0.1": lambda: test[:n] + 0.1 * torch.randn(n, *test.shape[1:]),
        "mean of two training pictures": lambda: (train[some[:n]] + train[some[-n:]]) / 2,
        "Gaussian fit of the pixels": lambda: measures.gaussian_like(train, n),
    }
    for steps in (5, 9, 18):
        sets[f"samples, {steps} steps of Heun"] = lambda steps=steps: sample_edm(model, n, steps, seed=1)
    distances, found = {}, {}
    for name, make in sets.items():
        torch.manual_seed(0)
        found[name] = make()
        distances[name] = round(frechet_distance(reference, features(found[name])), 1)
        print(name, distances[name], flush=True)
    report["frechet_distance"] = {
        "features": f"dinov2-s at 56 pixels, {n} pictures to 2,048 of the training split",
        **distances,
    }
    samples = found["samples, 18 steps of Heun"]
    report["nearest_training_picture"] = measures.nearest_rms(samples[:256], test[:256], train[:20000])
    measures.save_sheet(samples[:96], FIGURES / f"{run.name}.png", columns=16)
    _write(run.name, report)


def judge_report(run: Run) -> None:
    """Of the judge: accuracy on real pictures that it never saw."""
    from diffusion_pictures import to_pixels

    import monochord as mc
    from monochord.models.zoo.pictures import load_judge

    torch.set_num_threads(1)
    report = _ship(run)
    model = load_judge(SHIPPED / run.name, None).eval()
    data = mc.data("coloured-things")
    report["accuracy"] = {
        part: measures.accuracies(model, to_pixels(data[part]["image"]), data[part]) for part in ("test", "composed")
    }
    _write(run.name, report)


def pictures_report(run: Run, n: int = 600) -> None:
    """Of a text-to-image net: losses by timestep, attributes of samples, and for the sibling what it replays."""
    from diffusion_pictures import to_pixels

    import monochord as mc
    from monochord.diffusion.sampling import sample
    from monochord.models.zoo.pictures import load

    torch.set_num_threads(1)
    report = _ship(run)
    model = load(SHIPPED / run.name, None).eval()
    judge = mc.load("pictures-judge")
    data = mc.data("coloured-things")
    test = data["test"]
    report["held_out"] = measures.losses_by_timestep(model, test, data["train"])
    report["held_out_by_caption"] = measures.losses_by_caption(model, test)
    attributes: dict[str, Any] = {"chance": measures.chance(), "real pictures": {}}
    for part in ("test", "composed"):
        real = to_pixels(data[part]["image"])
        attributes["real pictures"][part] = measures.accuracies(judge, real, data[part])
    wanted = [("test", 3.0, n), ("test", 1.0, n // 2), ("composed", 3.0, n // 2)]
    for part, guidance, count in wanted:
        rows = data[part].take(np.arange(count))
        made = sample(model, rows["text"], 25, guidance, seed=1)
        name = f"samples, {part}, guidance {guidance:g}"
        attributes[name] = measures.accuracies(judge, made, rows)
        print(name, attributes[name], flush=True)
        if part == "test" and guidance == 3:
            measures.save_sheet(made[:96], FIGURES / f"{run.name}.png", columns=16)
            report["captions_of_the_sheet"] = list(rows["text"][:16])
    report["attributes"] = attributes
    if run.name.endswith("memorised"):
        import diffusion_replay

        report["replay"] = diffusion_replay.measure(model, load(SHIPPED / "pictures-unet", None).eval())
    _write(run.name, report)


def _ship(run: Run) -> dict[str, Any]:
    """Store the net; the beginning of its report."""
    folder = SHIPPED / run.name
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(run.weights)
    file = folder / f"step-{run.steps}.safetensors"
    write_weights(weights, file)
    (folder / "net.json").write_text(json.dumps({"seed": run.seed, "steps": [run.steps]}) + "\n", encoding="utf8")
    REPORTS.mkdir(exist_ok=True)
    shutil.copy(run.folder / "log.jsonl", REPORTS / f"{run.name}-log.jsonl")
    stored = read_weights(file)
    change = max(float((stored[k] - w).norm() / w.norm().clamp(min=1e-12)) for k, w in weights.items())
    return {
        "name": run.name,
        "parameters": sum(value.numel() for value in weights.values()),
        "seed": run.seed,
        "pictures": run.steps * run.batch,
        "steps": [run.steps],
        "training_minutes": round(run.log()[-1]["cpu_seconds"] / 60, 1),
        "training_note": "CPU time of one thread of a shared machine, bfloat16, averaged weights",
        "shipped_bytes": sum(part.stat().st_size for part in folder.iterdir()),
        "largest_change_by_storing": round(change, 5),
    }


def _write(name: str, report: dict[str, Any]) -> None:
    partial = REPORTS / f".{name}.part"
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    partial.rename(REPORTS / f"{name}.json")
