"""Facts about countries: capital, currency, languages, region, borders; for probing and editing what models know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

KNOWN = Path(__file__).with_name("known_capitals.json")  # made by tools/known_facts.py
PROMPT = "The capital of {name} is"


def read(folder: Path) -> Read:
    """The split "all" has the 246 countries and territories with a capital, by name.

    The split "known" has those of which SmolLM2 writes the first token of the capital after the raw prompt
    `PROMPT`; `whole` is 1 where it writes all of it, 0 elsewhere.
    `currencies`, `languages` and `borders` are codes (ISO 4217, 639-1 and 3166 alpha-3), separated by spaces;
    what a country lacks is an empty string.
    """
    files = sorted((folder / "countryinfo/data").glob("*.json"))
    records = [json.loads(file.read_text(encoding="utf8")) for file in files]
    fullest = {record["ISO"]["alpha3"]: record for record in sorted(records, key=len)}  # 3 are there twice
    check(len(fullest), 251, "countries")
    facts = sorted((record for record in fullest.values() if record["capital"]), key=lambda fact: fact["name"])
    check(len(facts), 246, "countries with a capital")
    plain = ("name", "capital", "region", "subregion", "demonym")
    columns = {key: [_one(fact.get(key)) for fact in facts] for key in plain}
    columns["code"] = [fact["ISO"]["alpha3"] for fact in facts]
    for key in ("currencies", "languages", "borders"):
        columns[key] = [" ".join(fact.get(key) or []) for fact in facts]
    left_out = "5 places without a capital and 3 second records of a place are left out"
    splits, notes = {"all": Split(columns)}, [left_out, "figures are of about 2015"]
    if KNOWN.exists():
        known = json.loads(KNOWN.read_text(encoding="utf8"))
        places = {name: row for row, name in enumerate(columns["name"])}
        rows = splits["all"].take([places[name] for name in known["first"]])
        whole = np.array([name in known["whole"] for name in known["first"]], np.int64)
        splits["known"] = Split({**{name: rows[name] for name in rows.columns}, "whole": whole})
        notes.append(f'known: {known["model"]} goes on rightly after "{known["prompt"]}" ({int(whole.sum())} whole)')
    return splits, tuple(notes)


def _one(value: str | list[str] | None) -> str:
    return str(value[0] if isinstance(value, list) else value or "")


ENTRIES = [
    Source(
        name="countries",
        kind="facts",
        title="capital, currencies, languages, region and borders of 246 countries",
        licence="MIT",
        package=Package(
            "pypi",
            "countryinfo",
            "1.0.1",
            sha256="b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
            size=380_450,
            members=("countryinfo/data/*.json", "*LICENSE*"),
        ),
        read=read,
    )
]
