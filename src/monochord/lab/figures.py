"""The figures of a comparison, as matplotlib figures and as SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

from monochord.lab.results import Arm, Metric, Results, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour in the SVG
FAINT = "#040506"  # stands for its lines and grids
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8856a7", "#e7298a", "#66a61e")
MARKERS = "osD^vP*Xdh<>"
WIDTH, HEIGHT = 4.4, 3.5  # inches; one column of the page and the whole of a telephone

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "monochord",
}


def figures(results: Results) -> dict[str, Figure]:
    """Every figure of the report by title, those without data left out."""
    from matplotlib import rc_context

    arms = results["arms"]
    made: dict[str, Figure] = {}
    if not arms:
        return made
    with rc_context(_STYLE):
        made[f"{_words(results['metric'])} against trained parameters"] = _against_parameters(results)
        if any(arm["forgotten"] for arm in arms):
            made["what was forgotten against what was learned"] = _forgetting(results)
        for field, title, note in _BLOCK_PANELS:
            if any(block[field] is not None for arm in arms for block in arm["blocks"]):  # type: ignore[literal-required]
                made[title] = _by_block(arms, field, note)
    return made


def overview(results: Results) -> Figure | None:
    """All methods beside each other, best first: score, trained parameters, memory and what was forgotten."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lower = 1 if results["metric"]["higher_is_better"] else -1
    arms = sorted(results["arms"], key=lambda arm: lower * arm["score"]["mean"])
    if not arms:
        return None
    scale, lost = _scale(results["metric"]), _scale(results["retention_metric"] or results["metric"])
    megabytes = [arm["peak_memory"] / 1e6 for arm in arms]
    panels: list[tuple[str, list[Any], Callable[[float], float]]] = [
        (_words(results["metric"]), [arm["score"] for arm in arms], scale),
        ("trained parameters", [max(arm["parameters"], 1) for arm in arms], float),
        ("memory of training, MB", megabytes, float),
    ]
    if all(arm["forgotten"] for arm in arms):
        points = ", points" if (results["retention_metric"] or results["metric"])["percent"] else ""
        panels.append((f"forgotten{points}", [arm["forgotten"] for arm in arms], lost))
    with rc_context(_STYLE):
        figure = Figure(figsize=(2 * WIDTH, 1 + 0.22 * len(arms)), layout="constrained")
        for axes, (title, values, scaled) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
            means, widths = [], [0.0]
            for place, value in enumerate(values):
                summary = value if isinstance(value, dict) else {"mean": value, "low": None, "high": None}
                means.append(scaled(summary["mean"]))
                if summary["low"] is not None:
                    ends = [scaled(summary["low"]), scaled(summary["high"])]
                    widths.append(abs(ends[1] - ends[0]) / 2)
                    axes.plot(ends, [place, place], color=COLOURS[0], alpha=0.55, linewidth=1.2)
                axes.plot(means[-1], place, "o", color=COLOURS[0], markersize=5)
            axes.set(xlabel=title, ylim=(-0.7, len(arms) - 0.3))
            if len(widths) > 1:  # one method that broke down must not press all others together
                around = median(widths) + 0.1 * (max(means) - min(means))
                axes.set_xlim(min(means) - around, max(means) + around)
        first, trained, *_ = figure.axes
        first.set_yticks(range(len(arms)), [arm["name"].replace("$", r"\$") for arm in arms])
        first.axvline(scale(results["chance"]), color=FAINT, linestyle="--", linewidth=1)
        trained.set_xscale("log")
    return figure


def svg(figure: Figure, name: str) -> str:
    """A figure as inline SVG: text stays text, neutral colours follow the page, ids are `name`'s own."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    return re.sub(r"font: ([^;\"]*?)'[^;\"]*'([^;\"]*)", r"font: \1inherit\2", text)


@contextmanager
def single() -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in the house's style; inside the block it can be drawn and saved."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "axes.prop_cycle": _cycle()}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        yield figure, figure.subplots()


def legend_above(axes: Axes) -> None:
    """Move a legend out of the axes, where it can cover nothing."""
    drawn = axes.get_legend()
    if drawn is None:
        return
    labels = [text.get_text() for text in drawn.get_texts()]
    columns = max(1, min(len(labels), 62 // (max(map(len, labels)) + 6)))
    handles = drawn.legend_handles
    drawn.remove()
    figure: Any = axes.figure
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5,
                  handlelength=1.6, columnspacing=1.2)  # fmt: skip


def _cycle() -> Any:
    from cycler import cycler

    return cycler(color=COLOURS)


def svg_file(figure: Figure) -> str:
    """A figure as an SVG file that can be read on light and dark pages."""
    text = svg(figure, "f").replace("var(--ink)", "#6b7280").replace("var(--faint)", "#9ca3af")
    return text.replace("font-family: inherit", "font-family: sans-serif").replace("inherit", "sans-serif")


def appearance(arms: Sequence[Arm]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm, the same in every figure."""
    return {arm["name"]: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, arm in enumerate(arms)}


def _against_parameters(results: Results) -> Figure:
    figure, axes = _figure()
    scale = _scale(results["metric"])
    points = []
    for arm, colour, marker in _dressed(results["arms"]):
        score = arm["score"]
        points.append((max(arm["parameters"], 1), scale(score["mean"]), arm["name"], colour))
        _point(axes, max(arm["parameters"], 1), score, scale, colour, marker)
    chance = scale(results["chance"])
    axes.axhline(chance, color=FAINT, linestyle="--", linewidth=1)
    axes.annotate(
        "chance",
        (1, chance),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=INK,
        size=8.5,
    )
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters, head included")
    axes.set_ylabel(_words(results["metric"]))
    _label(axes, points, log_x=True)
    return figure


def _forgetting(results: Results) -> Figure:
    figure, axes = _figure()
    scale = _scale(results["metric"])
    lost = _scale(results["retention_metric"] or results["metric"])
    points = []
    for arm, colour, marker in _dressed(results["arms"]):
        if arm["forgotten"] is None:
            continue
        x, y = scale(arm["score"]["mean"]), lost(arm["forgotten"]["mean"])
        _point(axes, x, arm["forgotten"], lost, colour, marker)
        low, high = arm["score"]["low"], arm["score"]["high"]
        if low is not None and high is not None:
            axes.plot([scale(low), scale(high)], [y, y], color=colour, alpha=0.55, linewidth=1.2, zorder=2)
        points.append((x, y, arm["name"], colour))
    axes.axhline(0, color=FAINT, linestyle="--", linewidth=1)
    axes.set_xlabel(f"learned: {_words(results['metric'])}")
    kept = results["retention_metric"] or results["metric"]
    axes.set_ylabel(f"forgotten: {kept['name']}" + (", points" if kept["percent"] else ""))
    _label(axes, points)
    return figure


_BLOCK_PANELS = (
    ("norm", "size of the weight change by block", "‖change‖ / ‖weights‖"),
    ("rank", "effective rank of the weight change by block", "effective rank"),
    ("overlap", "share of the change in the base's main directions", "share (dotted: by chance)"),
    ("cka", "likeness of each block's output to the base's", "linear CKA (1: unchanged)"),
)


def _by_block(arms: Sequence[Arm], field: str, note: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(legend=True)
    values: list[float] = []
    for arm, colour, marker in _dressed(arms):
        y = [block[field] for block in arm["blocks"]]  # type: ignore[literal-required]
        shown = [(i, v) for i, v in enumerate(y) if v is not None]
        if not shown:
            continue
        values += [v for _, v in shown]
        axes.plot(
            *zip(*shown, strict=True),
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            label=arm["name"].replace("$", r"\$"),
        )
    if field == "overlap":
        chance = next(([b["overlap_chance"] for b in a["blocks"]] for a in arms if a["blocks"] and _has(a, field)), [])
        dots = [(i, v) for i, v in enumerate(chance) if v is not None]
        if dots:
            axes.plot(*zip(*dots, strict=True), color=FAINT, linestyle=":", linewidth=1.5)
    low = min((v for v in values if v > 0), default=1.0)
    if field in ("norm", "rank") and values and max(values) > 30 * low:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block")
    axes.set_ylabel(note)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, handlelength=1.6, columnspacing=1.2)
    return figure


def _has(arm: Arm, field: str) -> bool:
    return any(block[field] is not None for block in arm["blocks"])  # type: ignore[literal-required]


def _figure(legend: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT + (0.6 if legend else 0)), layout="constrained")
    FigureCanvasAgg(figure)  # measures text, so that labels can avoid each other
    return figure, figure.subplots()


def _dressed(arms: Sequence[Arm]) -> list[tuple[Arm, str, str]]:
    looks = appearance(arms)
    return [(arm, *looks[arm["name"]]) for arm in arms]


def _point(axes: Axes, x: float, y: Summary, scale: Callable[[float], float], colour: str, marker: str) -> None:
    if y["low"] is not None and y["high"] is not None:
        axes.plot([x, x], [scale(y["low"]), scale(y["high"])], color=colour, alpha=0.55, linewidth=1.2, zorder=2)
    axes.plot([x], [scale(y["mean"])], color=colour, marker=marker, markersize=7, zorder=3)


def _label(axes: Axes, points: Sequence[tuple[float, float, str, str]], *, log_x: bool = False) -> None:
    """Write names beside points, each at the first of some places where it covers nothing."""
    from math import log10

    axes.margins(x=0.16, y=0.1)
    figure: Any = axes.figure
    figure.draw_without_rendering()
    places = [(7, 4, "left"), (7, -11, "left"), (-7, 4, "right"), (-7, -11, "right"), (0, 10, "center")]
    places += [(7, 15, "left"), (7, -22, "left"), (-7, 15, "right"), (-7, -22, "right"), (0, -18, "center")]
    places += [(12, 26, "left"), (-12, 26, "right"), (12, -33, "left"), (-12, -33, "right")]
    renderer: Any = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer).padded(4)
    dots = [axes.transData.transform((x, y)) for x, y, *_ in points]
    taken: list[Any] = []
    order = sorted(range(len(points)), key=lambda i: log10(points[i][0]) if log_x else points[i][0])
    for i in order:
        x, y, name, colour = points[i]
        best: tuple[float, Any] | None = None
        for dx, dy, align in places:
            text = axes.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=align,
                size=8.5,
                color=INK,
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
                if abs(dy) > 11
                else None,
            )
            box = _text_box(text, renderer)
            cost = sum(10.0 for other in taken if box.overlaps(other))
            cost += sum(6.0 for dot in dots if box.x0 - 4 < dot[0] < box.x1 + 4 and box.y0 - 4 < dot[1] < box.y1 + 4)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            cost += 0 if inside else 8.0
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text)
            else:
                text.remove()
            if cost == 0:
                break
        if best is not None:
            taken.append(_text_box(best[1], renderer))


def _text_box(text: Any, renderer: Any) -> Any:
    """Where the words are, without the line that leads to them."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _words(metric: Metric) -> str:
    return metric["name"] + (", %" if metric["percent"] else "")


def _scale(metric: Metric) -> Callable[[float], float]:
    factor = 100.0 if metric["percent"] else 1.0
    return lambda value: factor * value
