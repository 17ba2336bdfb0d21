"""Figures for print, as SVG and PNG, drawn by matplotlib from the page's panels; the same panels give the same bytes.

Plotly itself exports images only through a browser.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import unescape
from typing import Any

from analysis.evaluation import AVERAGE
from analysis.figures.panel import Panel, Trace
from analysis.parallel import parallel_map

WIDTH, HEIGHT, DPI = 5.5, 3.4, 200  # inches
MOST_LINES = 12  # in a figure; more cannot be told apart on paper
MOST_ROWS = 80  # in a figure with one row an arm; more fill more than a page
FEWEST = 8  # figures worth starting processes for
INK, AXIS = "#191917", "#62615c"
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
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a $
    "svg.hashsalt": "opd",
    "svg.fonttype": "path",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebeae6",
    "axes.edgecolor": AXIS,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def static_figures(
    panels: Sequence[Panel], members: Mapping[str, list[str]], *, smooth: bool
) -> Iterator[tuple[str, bytes]]:
    """File name and content: each figure under each option of its first control, averaged over the benchmarks.

    Args:
        panels: the figures.
        members: topic → its arms (`topics.members`).
        smooth: whether scores over training are shown as moving averages.
    """
    figures = [
        (name, replace(panel, traces=traces), choices)
        for panel in panels
        for name, choices in _variants(panel)
        if (traces := visible_traces(panel, choices, members, smooth=smooth))
    ]
    return (file for files in parallel_map(_files, figures, fewest=FEWEST) for file in files.items())


def visible_traces(
    panel: Panel, choices: Mapping[str, str], members: Mapping[str, list[str]], *, smooth: bool
) -> list[Trace]:
    """The traces of a figure that match these choices, of as many arms of its comparison as fit."""
    arms = members.get(panel.topic or "")
    benchmarks = {trace["meta"]["benchmark"] for trace in panel.traces if "benchmark" in trace["meta"]}
    benchmark = AVERAGE if AVERAGE in benchmarks and len(benchmarks) > 2 else min(benchmarks - {AVERAGE}, default="")
    wanted = {"benchmark": benchmark, "smooth": smooth, **choices}
    traces = [
        trace
        for trace in panel.traces
        if all(trace["meta"].get(key, value) == value for key, value in wanted.items())
        and (arms is None or trace["meta"].get("arm", arms[0]) in arms)
    ]
    every = list(dict.fromkeys(trace["meta"]["arm"] for trace in traces if "arm" in trace["meta"]))
    first = {None, *every[: MOST_ROWS if panel.tall else MOST_LINES]}
    return [trace for trace in traces if trace["meta"].get("arm") in first]


def _variants(panel: Panel) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, choices): one for each option of the first control, with the first option of the others."""
    first, *others = panel.controls or (None,)
    choices = {control.key: control.options[0][0] for control in others}
    if first is None or first.key == "run":  # one run represents all
        yield panel.id, choices | ({first.key: first.options[0][0]} if first else {})
        return
    for position, (value, _) in enumerate(first.options):
        suffix = value.replace("/", "-").replace("_", "-") if value.isascii() and len(value) <= 40 else str(position)
        yield f"{panel.id}-{suffix}", {first.key: value, **choices}


def _files(figure: tuple[str, Panel, Mapping[str, str]]) -> dict[str, bytes]:
    """File name → content of a figure, given as its name, a panel of visible traces, and the choices."""
    import matplotlib

    name, panel, choices = figure
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        svg, png = _draw(panel, choices)
    return {f"{name}.svg": svg, f"{name}.png": png}


def _draw(panel: Panel, choices: Mapping[str, str]) -> tuple[bytes, bytes]:
    """SVG and PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(label for trace in panel.traces if "yaxis" not in trace for label in trace["y"]))
    height = max(1.6, 0.9 + 0.27 * len(rows)) if panel.tall else HEIGHT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for trace in panel.traces:
        if trace["type"] == "bar" and not panel.tall:
            _draw_histogram(axes, trace, panel)
        elif "yaxis" in trace:  # a line across all rows
            axes.axvline(trace["x"][0], color=trace["line"]["color"], linestyle="--", linewidth=1)
        else:
            _draw_trace(axes, trace, rows if panel.tall else None)
    if panel.tall:
        axes.set_yticks(range(len(rows)), [unescape(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
    _label(axes, panel, choices)
    if not panel.tall and len(axes.get_legend_handles_labels()[1]) > 1:
        figure.legend(loc="outside lower center", ncols=3)
    figure.draw_without_rendering()  # computes the layout once; `savefig` would do so for each format
    figure.set_layout_engine("none")
    svg, png = io.BytesIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _label(axes: Any, panel: Panel, choices: Mapping[str, str]) -> None:
    """Titles, ticks and ranges. The page has a heading over each figure; in print the axes must say what they show."""
    options = {control.key: dict(control.options)[choices[control.key]] for control in panel.controls}
    titles = {axis: panel.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")}
    scored, score = "xaxis" if panel.tall else "yaxis", options.get("score", panel.title)
    titles[scored] = f"{score}, {titles[scored]}" if titles[scored] in ("%", "points") else titles[scored] or score
    titles["xaxis"] = titles["xaxis"] or options.get("axis", "")
    titles |= {
        "xaxis" if panel.id == "cost" else "yaxis": panel.titles[value]
        for value in choices.values()
        if value in panel.titles
    }
    axes.set(xlabel=titles["xaxis"], ylabel=titles["yaxis"])
    for axis, limit in (("xaxis", axes.set_xlim), ("yaxis", axes.set_ylim)):
        if "range" in panel.layout[axis]:
            limit(*panel.layout[axis]["range"])
        elif panel.layout[axis].get("rangemode") == "tozero":
            limit(0)
        if "clipmin" in (ends := panel.layout[axis].get("autorangeoptions", {})):
            low, high = getattr(axes, f"get_{axis[0]}lim")()
            limit(max(low, ends["clipmin"]), min(max(high, *ends.get("include", [high])), ends["clipmax"]))
    if "tickvals" in panel.layout["xaxis"]:
        axes.set_xticks(panel.layout["xaxis"]["tickvals"], panel.layout["xaxis"]["ticktext"])
    if panel.layout["xaxis"].get("zeroline"):
        axes.axvline(0, color=AXIS, linewidth=0.8)


def _draw_histogram(axes: Any, trace: Trace, panel: Panel) -> None:
    """Bars behind the other traces, with an axis on the right."""
    behind, x = axes.twinx(), trace["x"]
    behind.set_zorder(axes.get_zorder() - 1)
    axes.patch.set_visible(False)
    behind.grid(False)
    width = x[1] - x[0] if len(x) > 1 else 0.1
    behind.bar(x, trace["y"], width=width, color=trace["marker"]["color"], alpha=0.35, linewidth=0)
    behind.set_ylabel(panel.layout["yaxis2"]["title"]["text"])
    behind.spines["right"].set_visible(True)


def _draw_trace(axes: Any, trace: Trace, rows: list[str] | None) -> None:
    """A line, marks or a bar, with error bars."""
    marker, line, mode = trace["marker"], trace.get("line", {}), trace.get("mode", "")
    x = [unescape(value) if isinstance(value, str) else value for value in trace["x"]]
    y = [rows.index(label) for label in trace["y"]] if rows is not None else trace["y"]
    if trace["type"] == "bar":
        axes.barh(y, x, height=0.55, color=marker["color"], alpha=0.75)
    else:
        axes.plot(
            x,
            [float("nan") if value is None else value for value in y],
            color=marker["color"],
            linestyle=_DASHES[line.get("dash", "solid")] if "lines" in mode else "none",
            linewidth=0.6 * line.get("width", 2),
            marker=_MARKERS[marker["symbol"]] if "markers" in mode else "",
            markersize=0.55 * marker["size"],
            alpha=trace.get("opacity", 1),
            label="_" if trace["meta"].get("faint") else unescape(trace["name"]).lstrip("_"),
        )
    for side, points in (("error_x", x), ("error_y", y)):
        if side in trace and None not in points:
            ends = [[value or 0 for value in trace[side][end]] for end in ("arrayminus", "array")]
            ink = INK if trace["type"] == "bar" else marker["color"]
            axes.errorbar(x, y, **{f"{side[-1]}err": ends}, fmt="none", ecolor=ink, elinewidth=1)
