"""The data of the page's script: figures, the arms of each comparison, and the tokens of rollouts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from analysis.figures.panel import SHARE, Panel
from analysis.results import Results
from analysis.rollouts import Response

TOKENS = 40_000  # of all runs together


def page_data(
    results: Results, panels: Sequence[Panel], members: Mapping[str, list[str]]
) -> tuple[dict[str, Any], str]:
    """The data, ready for JSON, and a sentence on the runs whose tokens are omitted ("" for none)."""
    rollouts, omitted = _rollouts(results)
    note = f"The tokens of {omitted} more runs are omitted here; each run's folder `rollouts` has its own."
    only = results.benchmarks[0] if len(results.benchmarks) == 1 else None
    data = {**_figures(panels), "share": SHARE, "topics": members, "rollouts": rollouts, "only": only}
    return data, note if omitted else ""


def _figures(panels: Sequence[Panel]) -> dict[str, Any]:
    """The figures; parts that their traces share are kept once, in a pool, and referred to by index."""
    index: dict[str, int] = {}
    pool: list[Any] = []

    def pooled(value: Any) -> int:
        key = json.dumps(value)
        if key not in index:
            index[key] = len(pool)
            pool.append(value)
        return index[key]

    packed = [
        {
            **{name: getattr(panel, name) for name in ("id", "layout", "titles", "topic", "tall")},
            "traces": [
                [
                    pooled({key: value for key, value in trace.items() if key not in ("x", "y", "meta")}),
                    *(pooled(trace[key]) for key in ("meta", "x", "y")),
                ]
                for trace in panel.traces
            ],
        }
        for panel in panels
    ]
    return {"panels": packed, "pool": pool}


def _rollouts(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Those of one arm after another until there are `TOKENS`, and how many arms are omitted."""
    data, omitted, budget = [], 0, TOKENS
    for arm in results.arms:
        details = results.records.details.get(arm.id)
        if details is None or details.rollouts is None or not details.rollouts.responses:
            continue
        size = sum(len(response.tokens) for response in details.rollouts.responses)
        if size > budget:
            omitted += 1
            continue
        budget -= size
        responses = [_response(response) for response in details.rollouts.responses]
        data.append({"arm": arm.id, "label": arm.label, "step": details.rollouts.step, "responses": responses})
    return data, omitted


def _response(response: Response) -> dict[str, Any]:
    """With three digits, and 0 and 1 for truth values, which are shorter."""
    numbers = {
        name: [None if value is None else float(f"{value:.3g}") for value in getattr(response, name)]
        for name in ("advantage", "log_ratio")
    }
    return {**asdict(response), **numbers, "learned": list(map(int, response.learned))}
