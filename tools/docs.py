"""Write what is generated of the documentation: the README's tables, the pages of start, methods and papers.

python tools/docs.py            write them
python tools/docs.py --check    fail if they are out of date

What a method can do is found by trying it on small random models, never typed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

from monochord.core.registry import build, catalog, first_sentence, paper_of
from monochord.lab import repertoire
from monochord.lab.columns import columns_of, controls
from monochord.lab.figures import overview, svg_file
from monochord.lab.sheet import figure

ROOT = Path(__file__).parent.parent
COMPARISONS = ROOT / "docs/comparisons"  # results of `monochord compare`, one a family
MARKS = {
    name: re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
    for name in ("methods", "papers", "files", "compared")
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    front = MARKS["methods"].sub(lambda m: m[1] + table() + m[2], readme.read_text(encoding="utf8"))
    front = MARKS["papers"].sub(lambda m: m[1] + measured() + m[2], front)
    wanted = {
        readme: front,
        ROOT / "docs/index.md": front.replace("](docs/", "]("),
        ROOT / "docs/methods.md": page(),
        ROOT / "docs/papers.md": papers(),
        ROOT / "docs/gallery.md": gallery(),
    }
    wanted |= {path: family(path) for path in sorted((ROOT / "docs/families").glob("*.md"))}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf8") != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run `make docs`")
        return len(stale)
    for path in stale:
        path.write_text(wanted[path], encoding="utf8")
    for path in COMPARISONS.glob("*.json"):
        drawn = overview(json.loads(path.read_text(encoding="utf8")))
        path.with_suffix(".svg").write_text(svg_file(drawn), encoding="utf8")
    return 0


def table() -> str:
    """Name, summary and paper of every method, as a Markdown table."""
    rows = ["| method | what it does | paper |", "|---|---|---|"]
    rows += [f"| `{m.name}` | {m.summary} | {m.paper} |" for m in catalog()]
    return "\n".join(rows) + "\n"


def measured() -> str:
    """The papers whose experiment was run, with how many claims hold."""
    rows = ["| paper | family | verdict | claims that hold |", "|---|---|---|---|"]
    for entry in repertoire.repertoire():
        if entry.result is not None:
            claims = [claim["holds"] for claim in entry.result["claims"]]
            held = f"{sum(claims)} of {len(claims)}"
            rows.append(f"| {entry.title} (`{entry.slug}`) | {entry.family} | {entry.verdict} | {held} |")
    return "\n".join(rows) + "\n"


def papers() -> str:
    """The page of the repertoire: every paper, and for those measured every claim with its figures and drawings."""
    entries = repertoire.repertoire()
    done = [entry for entry in entries if entry.result is not None]
    lines = ["# Papers", "", "Written by `tools/docs.py` from `results/`. `monochord show SLUG` prints one,"]
    lines += ["`monochord reproduce SLUG` runs it again.", "", f"{len(done)} of {len(entries)} were measured here.", ""]
    for entry in done:
        lines += [
            f"## {entry.title}",
            "",
            f"`{entry.slug}`, {entry.family}, {entry.date}: **{entry.verdict}**. {entry.claim}.",
            "",
        ]
        for claim in entry.result["claims"]:
            figures = "; ".join(figure(look) for look in claim["measured"])
            lines.append(f"- **{'holds' if claim['holds'] else 'fails'}**: {claim['text']} ({figures})")
        for drawn in entry.result["figures"]:
            lines += ["", f"![{drawn['title']}](figures/{drawn['file']})"]
        lines.append("")
    lines += ["## All", "", "| paper | family | verdict | claim |", "|---|---|---|---|"]
    lines += [f"| {e.title} (`{e.slug}`) | {e.family} | {e.verdict} | {e.claim.replace('|', '/')} |" for e in entries]
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """Every figure of every result, under its paper and its title."""
    lines = ["# Gallery", "", "Every figure is drawn from `results/` by the experiment that measured it."]
    for entry in repertoire.repertoire():
        for drawn in entry.result["figures"] if entry.result is not None else ():
            lines += ["", f"**{drawn['title']}**, [{entry.title}](papers.md) (`{entry.slug}`)", ""]
            lines.append(f"![{drawn['title']}](figures/{drawn['file']})")
    return "\n".join(lines) + "\n"


def family(path: Path) -> str:
    """The page of a family: its own words, the files of its package and its papers with their verdicts."""
    rows = ["| file | what it is | paper |", "|---|---|---|"]
    for file in sorted((ROOT / "src/monochord" / path.stem).glob("[a-z]*.py")):
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf8"))) or ""
        rows.append(f"| `{path.stem}/{file.name}` | {first_sentence(told)} | {paper_of(told)} |")
    files = "\n".join(rows) + "\n" if len(rows) > 2 else "Its material is there; of its methods none is written yet.\n"
    listed = ["| paper | verdict | claim |", "|---|---|---|"]
    for entry in repertoire.repertoire(family=path.stem):
        listed.append(f"| {entry.title} (`{entry.slug}`) | {entry.verdict} | {entry.claim.replace('|', '/')} |")
    text = MARKS["files"].sub(lambda m: m[1] + files + m[2], path.read_text(encoding="utf8"))
    text = MARKS["compared"].sub(lambda m: m[1] + compared(path.stem) + m[2], text)
    return MARKS["papers"].sub(lambda m: m[1] + "\n".join(listed) + "\n" + m[2], text)


def compared(name: str) -> str:
    """The family's comparison, best first: its figure and a table."""
    results = json.loads((COMPARISONS / f"{name}.json").read_text(encoding="utf8"))
    columns = columns_of(results)[:6]  # not times: the machine was shared
    better = -1 if results["metric"]["higher_is_better"] else 1
    arms = sorted(results["arms"], key=lambda arm: better * arm["score"]["mean"])
    lines = [f"![{results['title']}](../comparisons/{name}.svg)", ""]
    lines += ["| " + " | ".join(heading for heading, _ in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(show(arm) for _, show in columns) + " |" for arm in arms]
    return "\n".join([*lines, "", " ".join(f"{label}: {text}." for label, text in controls(results)), ""])


def page() -> str:
    """The page of methods, with what each was found to do."""
    head = "# Methods\n\nWritten by `tools/docs.py`. `monochord methods` prints the list, "
    head += "`monochord compare --methods` takes the names.\n\n"
    rows = ["| method | trains, small Llama | merges | convolutions | classifier of texts |", "|---|---|---|---|---|"]
    for method in catalog():
        tuned = attached(method.name, language_model())
        convolutional = attached(method.name, convolutional_model(), "blocks.**.convolution.weight")
        encoder = attached(method.name, encoder_model())
        trained = "no site" if tuned is None else f"{tuned.n_trainable:,}"
        rows.append(
            f"| `{method.name}` | {trained} | {word(any(merges(t) for t in (tuned, encoder) if t is not None))} "
            f"| {word(convolutional is not None)} | {word(encoder is not None)} |"
        )
    return head + table() + "\n## What each was found to do\n\n" + "\n".join(rows) + "\n"


def attached(name: str, model: nn.Module, sites: str = ""):
    """The method on `model`, at its default sites or at `sites` if it lets one choose; None if it finds none."""
    for spec in (name, f"{name}(sites={sites!r})") if sites else (name,):
        try:
            return build(spec).attach(model)
        except (ValueError, TypeError):
            continue
    return None


def merges(tuned) -> bool:
    try:
        tuned.merge()
    except ValueError:
        return False
    return True


def word(yes: bool) -> str:
    return "yes" if yes else "no"


def language_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=256))


def encoder_model() -> nn.Module:
    from transformers import BertConfig, BertModel

    from monochord.models import Classifier

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Classifier(BertModel(BertConfig(**sizes, vocab_size=256)), 2)


def convolutional_model() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(embedding_size=32, hidden_sizes=[64, 64], depths=[1, 1]))


if __name__ == "__main__":
    sys.exit(main())
