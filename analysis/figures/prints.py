"""Figures for paper, as SVG and PNG, from the same panels as the page's. Same panels, same bytes."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import unescape
from typing import Any

from analysis.evaluation import AVERAGE
from analysis.figures.panel import TEACHER_LIGHT, Panel, Trace
from analysis.processes import spread

WIDTH, HEIGHT, DOTS = 5.5, 3.4, 200  # inches, and dots an inch
LINES = 12  # of a figure: more cannot be told apart on paper
FEWEST = 8  # figures: of fewer, starting processes takes longer than drawing
ROWS = 80  # of a figure with one row an arm: more fill more than a page
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "cross": "P",
    "line-ns-open": "|",
}
# Text as text is, not as mathematics: a name may hold a $.
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,
    "svg.hashsalt": "opd",
    "svg.fonttype": "path",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ebeae6",
    "axes.edgecolor": "#62615c",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def prints(panels: Sequence[Panel], members: Mapping[str, list[str]], *, smooth: bool) -> Iterator[tuple[str, bytes]]:
    """File name and content: each figure under each option of its first control, the average over the benchmarks.

    Many are drawn by processes of their own, beside what the caller does next.

    Args:
        panels: the figures.
        members: topic → its arms (`topics.members`).
        smooth: whether scores over training are shown as moving averages.
    """
    figures = [
        (name, replace(panel, traces=traces), chosen)
        for panel in panels
        for name, chosen in _variants(panel)
        if (traces := shown(panel, chosen, members, smooth=smooth))
    ]
    return (file for files in spread(_files, figures, fewest=FEWEST) for file in files.items())


def shown(panel: Panel, chosen: Mapping[str, str], members: Mapping[str, list[str]], *, smooth: bool) -> list[Trace]:
    """The traces of a figure under these choices, of its comparison's arms, but of no more than fit."""
    arms = members.get(panel.topic or "")
    benchmarks = {trace["meta"]["benchmark"] for trace in panel.traces if "benchmark" in trace["meta"]}
    benchmark = AVERAGE if AVERAGE in benchmarks and len(benchmarks) > 2 else min(benchmarks - {AVERAGE}, default="")

    def fits(meta: Mapping[str, Any]) -> bool:
        return (
            meta.get("benchmark", benchmark) == benchmark
            and meta.get("smooth", smooth) == smooth
            and (arms is None or meta.get("arm", arms[0]) in arms)
            and all(meta.get(key, value) == value for key, value in chosen.items())
        )

    traces = [trace for trace in panel.traces if fits(trace["meta"])]
    every = dict.fromkeys(trace["meta"]["arm"] for trace in traces if "arm" in trace["meta"])
    first = set(list(every)[: ROWS if panel.tall else LINES])
    return [trace for trace in traces if "arm" not in trace["meta"] or trace["meta"]["arm"] in first]


def _variants(panel: Panel) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, choices): one for each option of the first control, the first option of the others."""
    if not panel.controls:
        yield panel.id, {}
        return
    first, *others = panel.controls
    rest = {control.key: control.options[0][0] for control in others}
    for position, (value, _) in enumerate(first.options):
        suffix = value.replace("/", "-").replace("_", "-") if value.isascii() and len(value) <= 40 else str(position)
        if position == 0 or first.key != "run":  # of a choice among runs, the first stands for all
            yield f"{panel.id}-{suffix}" if first.key != "run" else panel.id, {first.key: value, **rest}


def _files(figure: tuple[str, Panel, Mapping[str, str]]) -> dict[str, bytes]:
    """File name → content of a figure given as its name, the panel with the traces to show, and the choices."""
    import matplotlib

    name, panel, chosen = figure
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        svg, png = _drawn(panel, chosen)
    return {f"{name}.svg": svg, f"{name}.png": png}


def _drawn(panel: Panel, chosen: Mapping[str, str]) -> tuple[bytes, bytes]:
    """SVG and PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    traces = panel.traces
    rows = list(dict.fromkeys(label for trace in traces if "yaxis" not in trace for label in trace["y"]))
    height = max(1.6, 0.9 + 0.27 * len(rows)) if panel.tall else HEIGHT
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    behind = axes.twinx() if any(trace["type"] == "bar" and "yaxis" in trace for trace in traces) else None
    if behind:
        behind.set_zorder(axes.get_zorder() - 1)
        axes.patch.set_visible(False)
        behind.grid(False)
    for trace in traces:
        _draw(axes, behind, trace, rows if panel.tall else None)
    if panel.tall:
        axes.set_yticks(range(len(rows)), [unescape(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
    _label(axes, behind, panel, chosen)
    labels = axes.get_legend_handles_labels()[1]
    if not panel.tall and len(labels) > 1:
        figure.legend(loc="outside lower center", ncols=3)
    figure.draw_without_rendering()  # places everything; to do so again for each format would double the time
    figure.set_layout_engine("none")
    svg, png = io.BytesIO(), io.BytesIO()  # not by `savefig`, which draws everything twice
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _label(axes: Any, behind: Any, panel: Panel, chosen: Mapping[str, str]) -> None:
    """The page has a heading over each figure; on paper the axes must say what they show."""
    given = panel.layout
    named = {control.key: dict(control.options)[chosen[control.key]] for control in panel.controls}
    titles = {axis: given[axis]["title"]["text"] for axis in ("xaxis", "yaxis")}
    scored = "xaxis" if panel.tall else "yaxis"
    what = named.get("score", panel.title)
    titles[scored] = f"{what}, {titles[scored]}" if titles[scored] in ("%", "points") else titles[scored] or what
    titles["xaxis"] = titles["xaxis"] or named.get("axis", "")
    for value in chosen.values():
        if value in panel.titles:
            titles["xaxis" if panel.id == "cost" else "yaxis"] = panel.titles[value]
    axes.set_xlabel(titles["xaxis"])
    axes.set_ylabel(titles["yaxis"])
    if "tickvals" in given["xaxis"]:
        axes.set_xticks(given["xaxis"]["tickvals"], given["xaxis"]["ticktext"])
    for axis, limit in (("xaxis", axes.set_xlim), ("yaxis", axes.set_ylim)):
        if "range" in given[axis]:
            limit(*given[axis]["range"])
        elif given[axis].get("rangemode") == "tozero":
            limit(0)
    if given["xaxis"].get("zeroline"):
        axes.axvline(0, color="#62615c", linewidth=0.8)
    if behind:
        behind.set_ylabel(given["yaxis2"]["title"]["text"])
        behind.spines["right"].set_visible(True)


def _draw(axes: Any, behind: Any, trace: Trace, rows: list[str] | None) -> None:
    """One trace of plotly's kinds that the panels use."""
    style = trace.get("line") or trace["marker"]
    colour = style["color"]
    if trace["type"] == "bar" and rows is None:
        width = trace["x"][1] - trace["x"][0] if len(trace["x"]) > 1 else 0.1
        behind.bar(trace["x"], trace["y"], width=width, color=TEACHER_LIGHT, alpha=0.35, linewidth=0)
        return
    if trace.get("yaxis") == "y2":
        axes.axvline(trace["x"][0], color=colour, linestyle="--", linewidth=1)
        return
    y = [rows.index(label) for label in trace["y"]] if rows is not None else trace["y"]
    x = [unescape(value) if isinstance(value, str) else value for value in trace["x"]]
    if trace["type"] == "bar":
        axes.barh(y, x, height=0.55, color=colour, alpha=0.75)
    else:
        mode, marker = trace["mode"], trace.get("marker", {})
        axes.plot(
            x,
            [float("nan") if value is None else value for value in y],
            color=colour,
            linestyle=_DASHES[trace.get("line", {}).get("dash", "solid")] if "lines" in mode else "none",
            linewidth=0.6 * trace.get("line", {}).get("width", 2) if "lines" in mode else 0,
            marker=_MARKERS[marker.get("symbol", "circle")] if "markers" in mode else "",
            markersize=0.55 * marker.get("size", 6),
            alpha=trace.get("opacity", 1),
            label="_" if trace["meta"].get("faint") else unescape(trace["name"]).lstrip("_"),
        )
    for side in ("error_x", "error_y"):
        if side in trace:
            ends = [[value or 0 for value in trace[side][end]] for end in ("arrayminus", "array")]
            ink = "#191917" if trace["type"] == "bar" else colour
            known = [value for value in (x if side == "error_x" else y) if value is not None]
            if len(known) == len(x):
                kind = {"xerr": ends} if side == "error_x" else {"yerr": ends}
                axes.errorbar(x, y, **kind, fmt="none", ecolor=ink, elinewidth=1)
