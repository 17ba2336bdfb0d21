"""What the page's script reads: the figures, which arms belong to which comparison, and the tokens of rollouts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.panel import Panel
from analysis.results import Results
from analysis.rollouts import Response

TOKENS = 40_000  # on the page, of all runs together


def page_data(
    results: Results, panels: Sequence[Panel], members: Mapping[str, list[str]]
) -> tuple[dict[str, Any], str]:
    """The data, ready for JSON, and a sentence on the runs whose tokens are left out ("" for none)."""
    rollouts, left_out = _rollouts(results)
    note = (
        f"The tokens of {left_out} further runs are left out here; each run's own are in its folder rollouts."
        if left_out
        else ""
    )
    only = results.benchmarks[0] if len(results.benchmarks) == 1 else None
    return {**_figures(panels), "topics": members, "rollouts": rollouts, "only": only}, note


def _figures(panels: Sequence[Panel]) -> dict[str, Any]:
    """Their traces share much: each different part is kept once, in the pool, and has a number."""
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
            "layout": panel.layout,
            "controls": [control.key for control in panel.controls],
            "titles": panel.titles,
            "topic": panel.topic,
            "tall": panel.tall,
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


def _rollouts(results: Results) -> tuple[list[dict[str, Any]], int]:
    """Arm by arm until the page has `TOKENS`, and how many arms are left out."""
    shown, left_out, budget = [], 0, TOKENS
    for arm in results.arms:
        details = results.records.details.get(arm.id)
        if details is None or details.rollouts is None or not details.rollouts.responses:
            continue
        size = sum(len(response.tokens) for response in details.rollouts.responses)
        if size > budget:
            left_out += 1
            continue
        budget -= size
        responses = [_response(response) for response in details.rollouts.responses]
        shown.append({"arm": arm.id, "label": arm.label, "step": details.rollouts.step, "responses": responses})
    return shown, left_out


def _response(response: Response) -> dict[str, Any]:
    """Columns instead of tokens: half the size."""
    return {
        "problem": response.problem,
        "tokens": [token.text for token in response.tokens],
        "advantage": [_short(token.advantage) for token in response.tokens],
        "log_ratio": [_short(token.log_ratio) for token in response.tokens],
        "learned": [int(token.learned) for token in response.tokens],
        "left_out": response.left_out,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
