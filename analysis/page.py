"""The self-contained HTML page of the report, and its Markdown. It makes no request, and nothing in a record can run.

Records enter the page only through Jinja with autoescaping, and as JSON whose <, > and & are escaped, read with
`JSON.parse` and shown as text. A content security policy allows only the scripts inlined here, by their hashes, and no
requests.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import islice
from typing import Any

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from analysis.decisions import NOT_RUN
from analysis.evaluation import AVERAGE
from analysis.figures.curves import many_evaluations
from analysis.figures.panel import DARK, LIGHT, NUM_STYLES, TEACHER_DARK, TEACHER_LIGHT, Panel, arm_styles
from analysis.headline import Headline
from analysis.page_data import page_data
from analysis.results import Results
from analysis.table import Table
from analysis.tables import state_of
from analysis.text import markdown, script_json
from analysis.topics import TOPICS

METHOD = (
    "mean@k is the share of a problem's k answers that are right, averaged over the problems; best@k is 1 for a problem"
    " with any right answer; maj@k is 1 if its most frequent answer is right. Benchmarks are averaged unweighted.",
    "Intervals are 95 % intervals of Student's t over the problems of each benchmark and, for runs with several seeds,"
    " over the seeds; for a single run's shares on at most 50 problems, exact or beta-binomial. With one seed they say"
    " nothing about how seeds differ; with two or three they are wide if seeds differ much.",
    "Only finished runs whose last step was evaluated count in means and differences. Damaged, unfinished and duplicate"
    " records are listed under “Left out”. A missing number is shown as –, never as 0.",
)
# Group of figures → its title, a note, and the table below its figures ("" for none).
GROUPS = {
    "learning": ("Learning curves", "Scores at each evaluation; step 0 is the student before training.", ""),
    "differences": ("Differences", "Each finished run against the baseline, with its uncertainty.", ""),
    "stability": (
        "Stability",
        "Whether training is stable: the default, a lower learning rate, and corrections of the rollout mismatch.",
        "",
    ),
    "explorer": (
        "Hyper-parameters",
        "The effect of each hyper-parameter of the default, varied alone.",
        "hyperparameters",
    ),
    "divergence": ("Divergences", "What each divergence rewards, and the scores that it reaches.", ""),
    "ensemble": ("Teacher ensembles", "Several teachers combined, compared with the default's single teacher.", ""),
    "filter": ("Token filters", "Training on a subset of the tokens.", "filters"),
    "tokens": (
        "Tokens",
        "Responses of the last recorded step: blue tokens become more likely, orange ones less likely; the deeper the"
        " colour, the larger the advantage. Struck out: not learned.",
        "",
    ),
    "cost": ("Cost", "Score against the hours and tokens that training took.", "costs"),
    "seeds": ("Seeds", "How much runs of one config differ.", ""),
    "training": ("Training", "The metrics of each step, as a moving average (α = {alpha}).", ""),
}
DETAILS = ("settings", "verdicts", "ranking", "scores", "differences", "runs", "answers", "excluded")
MANY = 12  # arms: with more, curves initially show one comparison
SHOWN_AT_FIRST = 8  # arms outside published comparisons; within one, as many as have different styles
CARDS = ("verdicts", "not_run", "answers", "settings", "excluded")  # tables of texts: a card a row on narrow screens
ROWS_AT_FIRST = 100  # of a table; the script adds the others on demand


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
    results: Results,
    headline: Headline,
    tables: Mapping[str, Table],
    panels: Sequence[Panel],
    members: Mapping[str, list[str]],
    *,
    alpha: float,
) -> str:
    """The page. `members` is topic → its arms (`topics.members`); `alpha` the weight of the newest value in the moving
    averages, named where curves are smoothed.
    """
    template, css, script = (_read(name) for name in ("report.html.jinja", "report.css", "report.js"))
    scripts = (get_plotlyjs(), script)
    tables = _with_folded(tables)
    data, tokens = page_data(results, panels, members)
    data["rows"] = {
        f"table-{name}": _remaining_rows(table) for name, table in tables.items() if len(table.frame) > ROWS_AT_FIRST
    }
    first = ["summary", *(name for name in list(tables)[1:2] if name == "verdicts")]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        headline=headline,
        tables=tables,
        first_rows=lambda table: islice(table.rows(), ROWS_AT_FIRST),
        rows_at_first=ROWS_AT_FIRST,
        cards=CARDS,
        groups=_groups(panels, tables, alpha, tokens=bool(data["rollouts"])),
        first=first,
        details=[
            name
            for name in DETAILS
            if name in tables and name not in first and (name != "differences" or len(tables[name].frame))
        ],
        tokens=tokens,
        arms=_arms(results, members),
        topics=[topic for topic in TOPICS if topic.name in members],
        focus=next(iter(members)) if len(results.arms) > MANY and members else "",
        benchmarks=[AVERAGE, *results.benchmarks] if results.benchmarks[1:] else results.benchmarks,
        alpha=f"{alpha:g}",
        smooth=many_evaluations(results),
        data=script_json(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        palette=[*zip(range(len(LIGHT)), LIGHT, DARK, strict=True), ("teacher", TEACHER_LIGHT, TEACHER_DARK)],
        css=css,
        scripts=scripts,
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        method=METHOD,
    )


def _with_folded(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The tables, and as `not_run` the claims that were not run, which are then not among the verdicts."""
    if "verdicts" not in tables:
        return dict(tables)
    claims = tables["verdicts"]
    not_run = claims.frame["verdict"] == NOT_RUN
    fields = [field for field in claims.fields if field.key in ("says", "published", "note", "source", "id")]
    title = "1 claim that was not run" if not_run.sum() == 1 else f"{not_run.sum()} claims that were not run"
    folded = Table("not_run", title, "", fields, claims.frame[not_run])
    return {**tables, "verdicts": replace(claims, frame=claims.frame[~not_run]), "not_run": folded}


def _read(name: str) -> str:
    return (files("analysis") / name).read_text(encoding="utf-8")


def _groups(
    panels: Sequence[Panel], tables: Mapping[str, Table], alpha: float, *, tokens: bool
) -> list[dict[str, Any]]:
    """The groups that have a figure, a table or tokens."""
    groups = []
    for name, (title, note, table) in GROUPS.items():
        own = [panel for panel in panels if panel.group == name]
        if own or table in tables or (name == "tokens" and tokens):
            shown = {"name": name, "title": title, "note": note.format(alpha=f"{alpha:g}"), "panels": own}
            benchmarks = any("benchmark" in trace["meta"] for panel in own for trace in panel.traces)
            groups.append({**shown, "table": table if table in tables else "", "benchmarks": benchmarks})
    return groups


def _arms(results: Results, members: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    styles = arm_styles(results.arms, members)
    known = {arm for arms in members.values() for arm in arms}
    others = [arm.id for arm in results.arms if arm.role != "teacher" and arm.id not in known]
    shown = {arm for arms in members.values() for arm in arms[:NUM_STYLES]}.union(others[:SHOWN_AT_FIRST])
    return {
        arm.id: {
            "id": arm.id,
            "label": arm.marked,
            "state": "" if arm.counted else state_of(results, arm),
            "shown": arm.role in ("teacher", "baseline") or arm.id in shown,
            "slot": "teacher" if styles[arm.id].slot is None else styles[arm.id].slot,
            "dashes": _DASHES[styles[arm.id].dash],
            "outline": "" if arm.role == "teacher" else _OUTLINES[styles[arm.id].marker],
        }
        for arm in results.arms
    }


def _remaining_rows(table: Table) -> list[tuple[str | None, list[Any]]]:
    """The arm and the cells of each later row: a text or, where they differ from it, text, interval and sort key."""
    return [
        (
            arm,
            [
                cell.text
                if not cell.interval and str(cell.order) == cell.text
                else (cell.text, cell.interval, cell.order)
                for cell in cells
            ],
        )
        for arm, cells in islice(table.rows(), ROWS_AT_FIRST, None)
    ]


_DASHES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}
_OUTLINES = {
    "circle": "M17 6a4 4 0 1 1-8 0a4 4 0 1 1 8 0z",
    "square": "M9.5 2.5h7v7h-7z",
    "diamond": "M13 1l5 5l-5 5l-5-5z",
    "triangle-up": "M13 1.500l5 8.500h-10z",
    "x": "M10 1l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z",
    "cross": "M11.500 1h3v3.500h3.500v3h-3.500v3.500h-3v-3.500h-3.500v-3h3.500z",
}


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
