"""Results → one self-contained HTML page, and Markdown. It asks no network, and nothing from a record can run.

Records reach the page in two ways only: through Jinja with autoescaping, and as JSON whose <, > and & are escaped, read
with `JSON.parse` and shown as text. A content security policy allows no script but those inlined here, by their
hashes, and no request at all.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from analysis import figures
from analysis.cells import Table
from analysis.evaluation import AVERAGE
from analysis.figures import DARK, LIGHT, TEACHER_DARK, TEACHER_LIGHT, Panel
from analysis.headline import Headline
from analysis.results import Results
from analysis.text import markdown, script_json

GROUPS = {
    "learning": ("Learning curves", "Scores at each evaluation; step 0 is the student before training."),
    "differences": ("Differences", "Each finished run against the baseline, with its uncertainty."),
    "training": ("Training", "What each step recorded, as a moving average (α = {alpha})."),
}
METHOD = (
    "mean@k is the share of a problem's k answers that are right, averaged over the problems; best@k is 1 for a problem"
    " with any right answer; maj@k is 1 if its most frequent answer is right. Benchmarks are averaged unweighted.",
    "Intervals are 95 % intervals of Student's t over the problems of each benchmark and, for runs with several seeds,"
    " over the seeds; of a single run's shares on at most 50 problems, exact or beta-binomial ones. With one seed they"
    " say nothing of how seeds differ; with two or three they are wide if seeds differ much.",
    "Only finished runs whose last step was evaluated count in means and differences. What is broken, unfinished or"
    " there twice is named under “Left out”. A missing number is shown as –, never as 0.",
)
SHOWN_AT_FIRST = 8
SMOOTHED_FROM = 25  # evaluations: a moving average of fewer mostly shows its own lag


def markdown_page(headline: Headline, tables: Mapping[str, Table]) -> str:
    """The headline and every table as Markdown."""
    parts = [f"# {markdown(headline.title)}", markdown(headline.ran)]
    parts += [f"- **{markdown(tile.label)} {markdown(tile.value)}**: {markdown(tile.note)}" for tile in headline.tiles]
    for table in tables.values():
        if len(table.frame) or table.name == "excluded":
            rows = table.markdown().strip() if len(table.frame) else "None."
            parts += [f"## {markdown(table.title)}", markdown(table.note), rows]
    return "\n\n".join([*parts, "## How the numbers are made", *map(markdown, METHOD)]) + "\n"


def html_page(
    results: Results, headline: Headline, tables: Mapping[str, Table], panels: Sequence[Panel], *, alpha: float
) -> str:
    """The page. `alpha` is the weight of the newest value in the moving averages, named where curves are smoothed."""
    template, css, script = (_read(name) for name in ("report.html.jinja", "report.css", "report.js"))
    scripts = (get_plotlyjs(), script)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        headline=headline,
        tables=tables,
        groups=_groups(panels, alpha),
        arms=_arms(results),
        benchmarks=[AVERAGE, *results.benchmarks] if results.benchmarks[1:] else results.benchmarks,
        alpha=f"{alpha:g}",
        smooth=_many_evaluations(results),
        data=script_json(json.dumps(_data(panels), allow_nan=False, separators=(",", ":"))),
        palette=[*zip(range(len(LIGHT)), LIGHT, DARK, strict=True), ("teacher", TEACHER_LIGHT, TEACHER_DARK)],
        css=css,
        scripts=scripts,
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        method=METHOD,
    )


def _read(name: str) -> str:
    return (files("analysis") / name).read_text(encoding="utf-8")


def _data(panels: Sequence[Panel]) -> dict[str, Any]:
    """The figures for the page's script. Their traces share much: each different part is kept once and has a number."""
    shared: dict[str, int] = {}
    pool: list[Any] = []

    def number(value: Any) -> int:
        key = json.dumps(value)
        if key not in shared:
            shared[key] = len(pool)
            pool.append(value)
        return shared[key]

    packed = [
        {
            "id": panel.id,
            "group": panel.group,
            "layout": panel.layout,
            "traces": [
                [
                    number({key: value for key, value in trace.items() if key not in ("x", "y", "meta")}),
                    number(trace["meta"]),
                    number(trace["x"]),
                    number(trace["y"]),
                ]
                for trace in panel.traces
            ],
        }
        for panel in panels
    ]
    return {"panels": packed, "pool": pool}


def _groups(panels: Sequence[Panel], alpha: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "title": title, "note": note.format(alpha=f"{alpha:g}"), "panels": own}
        for name, (title, note) in GROUPS.items()
        if (own := [panel for panel in panels if panel.group == name])
    ]


def _arms(results: Results) -> dict[str, dict[str, Any]]:
    looks = figures.looks(results.arms)
    students = [arm.id for arm in results.arms if arm.role != "teacher"]
    return {
        arm.id: {
            "id": arm.id,
            "label": arm.label,
            "settled": arm.settled,
            "shown": arm.role == "teacher" or arm.id in students[:SHOWN_AT_FIRST],
            "slot": "teacher" if looks[arm.id].slot is None else looks[arm.id].slot,
            "dashes": _DASHES[looks[arm.id].dash],
            "outline": "" if arm.role == "teacher" else _OUTLINES[looks[arm.id].marker],
        }
        for arm in results.arms
    }


_DASHES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}
_OUTLINES = {
    "circle": "M17 6a4 4 0 1 1-8 0a4 4 0 1 1 8 0z",
    "square": "M9.5 2.5h7v7h-7z",
    "diamond": "M13 1l5 5l-5 5l-5-5z",
    "triangle-up": "M13 1.500l5 8.500h-10z",
    "x": "M10 1l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z",
    "cross": "M11.500 1h3v3.500h3.500v3h-3.500v3.500h-3v-3.500h-3.500v-3h3.500z",
}


def _many_evaluations(results: Results) -> bool:
    evaluations = results.by_step.groupby("run")["step"].nunique()
    return bool(len(evaluations)) and float(evaluations.median()) >= SMOOTHED_FROM


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
