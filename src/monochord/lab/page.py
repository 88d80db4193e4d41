"""A comparison as one HTML page: no scripts, nothing fetched, light and dark, fits a telephone."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from monochord.lab.columns import best_arm, controls, count, more_columns, number, overlaps, value_text
from monochord.lab.results import Results


def page(results: Results) -> str:
    """The report as HTML."""
    from monochord.lab.figures import figures, overview, svg

    glance = overview(results)
    drawn = "".join(
        f"<figure><figcaption>{_e(title.capitalize())}</figcaption>{svg(figure, f'f{i}')}</figure>"
        for i, (title, figure) in enumerate(figures(results).items())
    )
    parts = [
        f"<h1>{_e(results['title'])}</h1>",
        f"<p class=lead>{headline(results)}</p>",
        _html_table(results),
        f"<p class=note>{_e(_table_note(results))}</p>",
        f"<h2>At a glance</h2><div class='scroll wide'>{svg(glance, 'g')}</div>" if glance else "",
        f"<h2>Figures</h2><div class=figures>{drawn}</div>" if drawn else "",
        _search_table(results),
        _failures(results),
        _how(results),
    ]
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(title=_e(results["title"]), style=_STYLE, body=body)


def headline(results: Results) -> str:
    """The result in one or two sentences of HTML."""
    best = best_arm(results)
    if best is None:
        return "No method finished."
    metric = results["metric"]
    words = f"Best {_e(metric['name'])}: <b>{_e(best['name'])}</b> with {number(best['score'], metric)}"
    words += f", training {count(best['parameters'])} parameters."
    cheaper = [
        arm
        for arm in results["arms"]
        if arm["parameters"] < best["parameters"] and overlaps(arm["score"], best["score"])
    ]
    if cheaper:
        small = min(cheaper, key=lambda arm: arm["parameters"])
        words += f" <b>{_e(small['name'])}</b> is within its interval ({number(small['score'], metric)})"
        words += f" with {count(small['parameters'])}."
    kept = [arm for arm in results["arms"] if arm["forgotten"] is not None]
    if kept and results["retention_metric"]:
        worst = max(kept, key=lambda arm: arm["forgotten"]["mean"])  # type: ignore[index]
        lost = number(worst["forgotten"], results["retention_metric"], signed=True)
        words += f" <b>{_e(worst['name'])}</b> forgot most of the base's own task: {lost}."
    return words


def _html_table(results: Results) -> str:
    columns, best = more_columns(results), best_arm(results)
    head = "".join(f"<th>{_e(heading)}</th>" for heading, _ in columns)
    rows = []
    for arm in results["arms"]:
        title = f' title="{_e(arm["method"])}"' if arm["method"] != arm["name"] else ""
        cells = "".join(f"<td>{_e(show(arm))}</td>" for _, show in columns[1:])
        rows.append(f"<tr{' class=best' if arm is best else ''}><th{title}>{_e(arm['name'])}</th>{cells}</tr>")
    for name, text in controls(results):
        rows.append(f"<tr class=control><th>{_e(name)}</th><td colspan={len(columns) - 1}>{_e(text)}</td></tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _table_note(results: Results) -> str:
    notes = ["± is half a 95 % t interval over seeds."]
    if results["retention_task"]:
        notes.append(
            f"Forgotten: how much worse than the untouched base the tuned model does its own task "
            f"({results['retention_task']}), positive is worse."
        )
    sources = {trial["memory_source"] for arm in results["arms"] for trial in arm["trials"]}
    notes.append(
        "Stored: the file that save writes, head included. Memory: peak of training above the loaded model"
        + (f" ({', '.join(sorted(sources))})." if sources else ".")
    )
    notes.append(
        "Change: Frobenius norm of the weight change over that of the weights; rank: its effective rank; "
        "overlap: its share in the base's main directions; CKA: likeness of the blocks' outputs to the "
        "base's; means over blocks. A method that changes no block weights has no change, rank or overlap."
    )
    return " ".join(notes)


def _search_table(results: Results) -> str:
    rates = sorted({float(rate) for arm in results["arms"] for rate in arm["search"]})
    if not rates or all(len(arm["search"]) < 2 for arm in results["arms"]):
        return ""
    head = "".join(f"<th>{rate:.2g}</th>" for rate in rates)
    rows = []
    for arm in results["arms"]:
        cells = []
        for rate in rates:
            found = arm["search"].get(f"{rate:g}")
            text = value_text(found, results["metric"]) if found is not None else ""
            cells.append(f"<td>{f'<b>{text}</b>' if rate == arm['learning_rate'] else text}</td>")
        flag = " edge of the grid" if arm["edge"] else ""
        rows.append(f"<tr><th>{_e(arm['name'])}</th>{''.join(cells)}<td class=words>{flag}</td></tr>")
    return (
        "<h2>Learning rates</h2><p>Each method has the same number of tries; the validation score with the "
        "first seed chooses (bold), the test score above is from other data.</p><div class=scroll><table>"
        f"<thead><tr><th>method</th>{head}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _failures(results: Results) -> str:
    if not results["failures"]:
        return ""
    rows = "".join(f"<li><b>{_e(f['label'])}</b>: {_e(f['reason'])}</li>" for f in results["failures"])
    return f"<h2>What failed</h2><ul>{rows}</ul>"


def _how(results: Results) -> str:
    settings = {k: v for k, v in results["settings"].items() if k not in ("command", "python")}
    lists = _list("Settings", settings) + _list("Versions", results["versions"])
    again = "".join(
        f"<pre><code>{_e(str(results['settings'][key]))}</code></pre>"
        for key in ("command", "python")
        if results["settings"].get(key)
    )
    took = f"{results['seconds']:.0f} s, {results['cpu_seconds']:.0f} s of them on a processor"
    work = f"<p>All trials together took {took}.</p>"
    return f"<h2>How to get these numbers again</h2>{again}{work}<div class=lists>{lists}</div>"


def _list(heading: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{_e(str(key))}</dt><dd>{_e(_plain(value))}</dd>" for key, value in values.items())
    return f"<div><h3>{heading}</h3><dl>{rows}</dl></div>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return "none" if value is None else str(value)


def _e(text: str) -> str:
    return html.escape(text, quote=True)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #8a929c; --paper: #ffffff; --soft: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #7d8590; --paper: #14171a; --soft: #1f2429; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: 0; }
.lead { font-size: 1.08rem; max-width: 46rem; } .note { font-size: .85rem; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--faint); font-weight: 600; }
tbody th, thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  font-weight: 500; }
tbody tr:nth-child(even) td, tbody tr:nth-child(even) th { background: var(--soft); }
.best td, .best th { font-weight: 700; } .control td { text-align: left; font-style: italic; }
td.words { text-align: left; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; }
svg { width: 100%; max-width: 520px; height: auto; color: var(--ink); }
.wide svg { min-width: 640px; max-width: 900px; }
svg text { font-family: system-ui, sans-serif; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .85rem; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; font-size: .88rem; }
dt { color: var(--ink); opacity: .75; } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
