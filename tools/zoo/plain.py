"""What plain methods reach on the sets of the picture and sound nets: `reports/{picture,sound}-baselines.json`.

    python tools/zoo/plain.py pictures
    python tools/zoo/plain.py sounds

Logistic regression and five nearest neighbours on the nets' own inputs (pictures at 32 by 32, the mean and deviation
of each mel over time), and a linear probe of DINOv2-S on features of pictures at 112 by 112.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from classified import precision, write
from classify import Part
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

KNOWN = 6_000  # training items of logistic regression at most
FASHION = (2_000, 1_000)  # pictures that DINOv2 sees of it


def logistic(strength: float = 1e-3) -> Any:
    """Standardised inputs, then logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


def neighbours() -> Any:
    """Five nearest neighbours by Euclidean distance."""
    return KNeighborsClassifier(5)


METHODS = {"logistic regression": logistic, "5 nearest neighbours": neighbours}


def scores(method: Any, known: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Accuracy, or mean average precision where several labels hold."""
    x, y = known
    if y.ndim == 2:
        kept = y.any(0)
        fitted = method.fit(x, y[:, kept]) if isinstance(method, KNeighborsClassifier) else None
        fitted = fitted or OneVsRestClassifier(method).fit(x, y[:, kept])
        said = fitted.predict_proba(asked[0])
        found = np.stack([one[:, 1] for one in said], 1) if isinstance(said, list) else said
        return precision(found, asked[1][:, kept])
    return {"accuracy": round(float(method.fit(x, y).score(*asked)), 4), "known": len(y)}


def pictures() -> dict[str, Any]:
    """Baselines of the three sets of the picture nets."""
    import pictures as zoo
    from fashion import SETS
    from image_text import seen, towers

    model, report = towers("dinov2-s").eval(), {}
    for name in SETS:
        asked, report[name] = _flat(zoo.part(name, 1, "test"), 10_000), {}
        for title, method in METHODS.items():
            known = _flat(zoo.part(name, 1), KNOWN if method is logistic else 60_000)
            report[name][title] = scores(method(), known, asked)
        limits = FASHION if name == "fashion-mnist" else (None, None)
        data = zoo.pictures(name)
        few = [data[s].first(n) if n else data[s] for s, n in zip(("train", "test"), limits, strict=True)]
        targets = [np.asarray(split["label" if "label" in split else "labels"]) for split in few]
        deep = [seen(model, name, s, n).numpy() for s, n in zip(("train", "test"), limits, strict=True)]
        probe = scores(logistic(1e-2), (deep[0], targets[0]), (deep[1], targets[1]))
        report[name]["linear probe of DINOv2-S"] = {**probe, "known": len(deep[0]), "asked": len(deep[1])}
    return report


def sounds() -> dict[str, Any]:
    """Baselines of the sets of the sound net."""
    from speech import SETS, part

    report = {}
    for name in SETS:
        known, asked = (_spectrum(part(name, 1, split)) for split in ("train", "test"))
        report[name] = {title: scores(method(), known, asked) for title, method in METHODS.items()}
        report[name]["logistic regression, weaker penalty"] = scores(logistic(0.1), known, asked)
    return report


def _flat(part: Part, limit: int) -> tuple[np.ndarray, np.ndarray]:
    items = np.arange(min(limit, len(part.labels)))
    pixels = torch.cat([part.inputs(items[i : i + 500], None) for i in range(0, len(items), 500)])
    if torch.equal(pixels[:, 0], pixels[:, 1]):  # grey
        pixels = pixels[:, :1]
    return pixels.flatten(1).numpy(), part.labels[items]


def _spectrum(part: Part) -> tuple[np.ndarray, np.ndarray]:
    mels = part.inputs(np.arange(len(part.labels)), None).numpy()
    return np.concatenate([mels.mean(1), mels.std(1)], 1), part.labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("of", choices=("pictures", "sounds"))
    of = parser.parse_args().of
    write(f"{of.removesuffix('s')}-baselines", pictures() if of == "pictures" else sounds())
