"""Write `docs/performance.md` from what the benchmarks found.

python benchmarks/table.py
"""

import json
from pathlib import Path

from timing import RESULTS

TARGET = Path(__file__).parent.parent / "docs/performance.md"
HEAD = """# Performance

Ratios measured within one run, one thread, ours beside plain hand-written code and peers, so that they hold on
another machine; absolute times don't. `make bench` measures them again. This page is written by
`benchmarks/table.py` from `benchmarks/results/`.
"""


def main() -> None:
    lines = [HEAD]
    for file in sorted(RESULTS.glob("*.json")):
        report = json.loads(file.read_text(encoding="utf8"))
        torch = f"{report['cores']} cores, {report['machine']}, Python {report['python']}, torch {report['torch']}"
        lines += [
            f"## `{file.stem}.py`",
            "",
            torch,
            "",
            "| workload | measured in | ours | bar | others |",
            "|---|---|---|---|---|",
        ]
        for row in report["rows"]:
            if not any(row["found"].values()):
                continue  # less than could be measured
            found, bar = dict(row["found"]), row["bar"]
            own = found.pop(row["ours"])
            verdict = "" if bar is None else f"{bar:g}" if round(own, 2) <= bar else f"{bar:g} **missed**"
            others = ", ".join(f"{name} {figure:.2f}" for name, figure in found.items())
            lines.append(f"| {row['workload']} | {row['to']} | {own:.2f} | {verdict} | {others} |")
        lines.append("")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text("\n".join(lines), encoding="utf8")


if __name__ == "__main__":
    main()
