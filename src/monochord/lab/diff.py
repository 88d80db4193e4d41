"""What fine-tuning changed: the weights by block, what blocks put out on prompts, and the tuning's share in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.lab.measure import block_names, block_outputs, weight_changes
from monochord.lab.tune import RECORD, tuned_model

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = (
    "The capital of France is Paris, and the river that runs through it is called the Seine.",
    "Once upon a time there was a small village where nobody had ever seen the sea.",
    "The film was long, but the last scene made me forgive everything that came before.",
    "To solve the equation, first subtract three from both sides and then divide by two.",
    "She closed the window, put out the lamp, and listened to the rain on the roof.",
    "Water boils at a lower temperature on a mountain because the air is thinner there.",
    "Dear customer, we are sorry for the delay and will send a new parcel tomorrow.",
    "My brother plays the violin badly, which does not keep him from playing it loudly.",
)
NEIGHBOURS = 48


def diff(base: Any, tuned: Any, prompts: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare a tuned model with its base, block by block.

    `base` is what `mc.load` takes; `tuned` too, or the folder of a saved tuner or of `tune`. On `prompts` (a few of
    our own if not given) the blocks' outputs are compared by linear CKA and by the mean local dimension of the tokens'
    states (None under 50 distinct ones), where the model has a tokenizer. Returns `blocks`, a list of dicts, and the
    totals. Raises `StorageError` when the tuner is of another base.
    """
    from monochord.core.delta import Delta
    from monochord.core.subspace import cka
    from monochord.core.tuner import Tuned
    from monochord.models import load

    if _has(tuned, RECORD, "tensors.safetensors", "adapter_config.json"):
        if _has(tuned, RECORD):
            model, attached = tuned_model(base, tuned)
        else:
            model = load(base)
            attached = Tuned.load(model, tuned)
        batch = _batch(base, prompts)
        after = block_outputs(model, batch) if batch else {}
        with attached.disabled():
            before = block_outputs(model, batch) if batch else {}
        share = _contribution(attached, None, batch)
        delta: Mapping[str, Any] = attached.delta()
        attached.detach()
    else:
        model, other = load(base), load(tuned)
        delta = Delta.between(model, other)
        batch = _batch(base, prompts)
        before, after = (block_outputs(net, batch) if batch else {} for net in (model, other))
        share = _contribution(other, model, batch)
    blocks: list[dict[str, Any]] = [dict(block) for block in weight_changes(delta, model, block_names(model))]
    for block in blocks:
        name = block["block"]
        block["cka"] = cka(after[name], before[name]) if name in after and name in before else None
        block["dimension"], block["base_dimension"] = (_dimension(kept.get(name)) for kept in (after, before))
    parameters = dict(model.named_parameters())
    changed = [name for name in delta if name in parameters and delta[name].norm() > 0]
    norm = sum(delta[name].norm() ** 2 for name in changed) ** 0.5
    whole = sum(float(p.detach().float().square().sum()) for p in parameters.values()) ** 0.5
    return {
        "blocks": blocks,
        "changed": len(changed),
        "parameters": len(parameters),
        "norm": norm / whole,
        "contribution": share,
        "most": sorted(changed, key=lambda name: -_relative(delta, parameters, name))[:5],
    }


def _contribution(tuned: Any, base: Any, batch: dict[str, Any]) -> float | None:
    """The tuning's mean share in what blocks add at the prompts' last tokens; None for what is no language model."""
    from monochord.core.prompt import causal
    from monochord.models import Classifier
    from monochord.steer.tuco import tuco

    model = getattr(tuned, "model", tuned) if base is None else tuned
    if not batch or isinstance(model, Classifier) or not causal(model):
        return None
    return float(tuco(tuned, base, batch).tuco.mean())


def _relative(delta: Mapping[str, Any], parameters: Mapping[str, Any], name: str) -> float:
    return float(delta[name].norm() / max(float(parameters[name].detach().float().norm()), 1e-12))


def _dimension(states: Tensor | None) -> float | None:
    """The mean local dimension of states (n, d_model)."""
    from monochord.read.dimension import Local

    try:
        return None if states is None else float(Local(neighbours=NEIGHBOURS)(states).mean())
    except ValueError:  # too few distinct ones
        return None


def _has(folder: Any, *names: str) -> bool:
    return isinstance(folder, str | Path) and any((Path(folder) / name).exists() for name in names)


def _batch(model: Any, prompts: Sequence[str] | None) -> dict[str, Any]:
    """The prompts as the model reads them; nothing where it reads no text."""
    from monochord.core.catalog import CatalogError
    from monochord.models import processor

    try:
        tokenizer = processor(model)
    except CatalogError:
        return {}
    if not hasattr(tokenizer, "pad_token"):
        return {}
    return dict(tokenizer(list(prompts or PROMPTS), return_tensors="pt", padding=True))


def page(found: dict[str, Any], title: str) -> str:
    """The comparison as one self-contained HTML file."""
    import html

    from monochord.lab.figures import single, svg

    panels = []
    for key, words in PANELS:
        values = [block[key] for block in found["blocks"]]
        if all(value is None for value in values):
            continue
        with single() as (figure, axes):
            axes.plot(_numbers(values), marker="o", ms=3, label="tuned")
            if key == "dimension":
                axes.plot(_numbers([block["base_dimension"] for block in found["blocks"]]), ls="--", label="base")
                axes.legend(frameon=False)
            axes.set(xlabel="block", title=words)
            axes.locator_params(axis="x", integer=True)
            panels.append(svg(figure, key))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table_rows(found)
    )
    part = found["contribution"]
    share = "" if part is None else f"Tuning's share in what blocks add at the prompts' last tokens: {part:.1%}."
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"""<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{html.escape(title)}</title><style>
:root{{--ink:#1f2328;--faint:#8b949e;--paper:#fff}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e6edf3;--faint:#7d8590;--paper:#0d1117}}}}
body{{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:auto;
padding:1rem}} .scroll{{overflow-x:auto}} td,th{{padding:.2rem .8rem;text-align:right}}
td:first-child,th:first-child{{text-align:left}} svg{{width:100%}}
.row{{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}}
</style><h1>{html.escape(title)}</h1><p>{found["changed"]} of {found["parameters"]} tensors changed; the change is
{found["norm"]:.2%} of the weights. Most: {html.escape(", ".join(found["most"]) or "none")}. {share}</p>
<div class=row>{"".join(panels)}</div><div class=scroll><table><tr>{head}</tr>{rows}</table></div></html>
"""


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


PANELS = (
    ("norm", "Size of the change"),
    ("rank", "Effective rank"),
    ("cka", "Likeness of outputs (CKA)"),
    ("dimension", "Local dimension of states"),
)
COLUMNS = ("block", "change", "rank", "overlap", "by chance", "CKA", "dimension", "of base")


def table_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The blocks as rows of words, under `COLUMNS`."""

    def word(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        (
            b["block"],
            word(b["norm"], ".2%"),
            word(b["rank"], ".1f"),
            word(b["overlap"], ".2f"),
            word(b["overlap_chance"], ".2f"),
            word(b["cka"], ".3f"),
            word(b["dimension"], ".1f"),
            word(b["base_dimension"], ".1f"),
        )
        for b in found["blocks"]
    ]
