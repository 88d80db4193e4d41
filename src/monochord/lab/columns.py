"""The columns of a comparison's tables, and its numbers as words."""

from __future__ import annotations

from collections.abc import Callable

from monochord.lab.results import Arm, Metric, Results, Summary

Column = tuple[str, Callable[[Arm], str]]  # heading and how a row shows it


def columns_of(results: Results) -> list[Column]:
    metric, kept = results["metric"], results["retention_metric"]
    columns: list[Column] = [
        ("method", lambda arm: arm["name"]),
        (_heading(metric), lambda arm: number(arm["score"], metric, unit=False)),
    ]
    if kept is not None:
        columns.append(("forgotten", lambda arm: number(arm["forgotten"], kept, signed=True, unit=False)))
    columns += [
        ("trained", lambda arm: count(arm["parameters"])),
        ("stored", lambda arm: size(arm["bytes"])),
        ("memory", lambda arm: size(arm["peak_memory"])),
        ("ms/step", lambda arm: f"{1000 * arm['step_seconds']:.0f}"),
        ("train s", lambda arm: f"{arm['train_seconds']:.1f}"),
        ("change", lambda arm: _mean(arm, "norm")),
        ("rank", lambda arm: _mean(arm, "rank")),
        ("CKA", lambda arm: _mean(arm, "cka")),
    ]
    return columns


def more_columns(results: Results) -> list[Column]:
    columns = columns_of(results)
    metric, reference = results["metric"], results["reference"]
    if reference is not None:
        columns.insert(
            2,
            (f"against {reference}", lambda arm: number(arm["difference"], metric, signed=True, unit=False)),
        )
    columns += [
        ("overlap", lambda arm: _mean(arm, "overlap")),
        ("steps", lambda arm: str(arm["steps"])),
        ("rate", lambda arm: f"{arm['learning_rate']:.2g}"),
        ("seeds", lambda arm: str(arm["score"]["n"])),
    ]
    return columns


def controls(results: Results) -> list[tuple[str, str]]:
    metric, kept = results["metric"], results["retention_metric"]
    rows = [("chance", f"{value_text(results['chance'], metric)} {metric['name']}")]
    if results["base_score"] is not None:
        rows.append(("base", f"{value_text(results['base_score'], metric)} {metric['name']}"))
    if results["retention_base"] is not None and kept is not None:
        text = f"{value_text(results['retention_base'], kept)} {kept['name']}"
        rows.append(("untouched base", f"{text} ({results['retention_task']})"))
    return rows


def best_arm(results: Results) -> Arm | None:
    sign = 1 if results["metric"]["higher_is_better"] else -1
    return max(results["arms"], key=lambda arm: sign * arm["score"]["mean"], default=None)


def overlaps(first: Summary, second: Summary) -> bool:
    """Whether the second's interval holds the first's mean."""
    if second["low"] is None or second["high"] is None:
        return False
    return second["low"] <= first["mean"] <= second["high"]


def _heading(metric: Metric) -> str:
    return metric["name"] + (" %" if metric["percent"] else "")


def value_text(value: float, metric: Metric) -> str:
    return f"{100 * value:.1f} %" if metric["percent"] else f"{value:.3g}"


def number(value: Summary | None, metric: Metric, *, signed: bool = False, unit: bool = True) -> str:
    """`74.2 ± 1.1 %`; empty when there is nothing."""
    if value is None:
        return ""
    factor, digits = (100, 1) if metric["percent"] else (1, 3)
    text = f"{factor * value['mean']:{'+' if signed else ''}.{digits}f}"
    text = text.replace("-0.0", "+0.0") if signed and float(text) == 0 else text
    if value["low"] is not None and value["high"] is not None:
        text += f" ± {factor * (value['high'] - value['low']) / 2:.{digits}f}"
    return text + ((" points" if signed else " %") if metric["percent"] and unit else "")


def _mean(arm: Arm, field: str) -> str:
    values: list[float] = [v for b in arm["blocks"] if (v := b[field]) is not None]  # type: ignore[literal-required]
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if field == "cka" else f"{mean:.2g}" if mean < 100 else f"{mean:.0f}"


def count(n: float) -> str:
    """`10.6 M`, `74.5 k`, `770`."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= factor:
            return f"{n / factor:.3g}{unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes as `90.9 MB`."""
    return f"{count(n)}B" if n >= 1000 else f"{n:.0f} B"
