"""Figure 5 of the adventures post: which importance ratios occur, against each divergence's weight for them."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from analysis.figures.panel import Control, Look, Panel, Trace, colour, layout, look, rounded
from analysis.results import Results
from analysis.text import plot_label

Weight = Callable[[Float[np.ndarray, " point"]], Float[np.ndarray, " point"]]

REACH = 4.0  # nats to either side: r from e^-4 to e^4
# Policy-gradient weight -(f'(r) - f'(1)) as a function of u = log r, as `opd.objective.divergence` has them; the naive
# k3 is the value form that the post shows to be biased.
WEIGHTS: dict[str, Weight] = {
    "reverse KL": lambda u: -u,
    "forward KL": lambda u: np.exp(-u) - 1,
    "Jensen–Shannon": lambda u: -(np.log(2) + u - np.logaddexp(0, u)) / 2,
    "Hellinger": lambda u: np.exp(-u / 2) - 1,
    "Tsallis, α = 1.5": lambda u: 3 * (1 - np.exp(u / 2)),
    "naive k3": lambda u: 1 - np.exp(-u) - u,
}
_TICKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32)


def ratios(results: Results) -> Panel | None:
    """The weights, and behind them the share of a step's tokens at each ratio; None where no run recorded rollouts."""
    found = [(arm, details.rollouts) for arm in results.arms if (details := results.records.details.get(arm.id))]
    recorded = [(arm, rollouts) for arm, rollouts in found if rollouts and sum(rollouts.counts)]
    if not recorded:
        return None
    traces: list[Trace] = []
    options = []
    for arm, rollouts in recorded:
        edges = np.linspace(rollouts.low, rollouts.high, len(rollouts.counts) + 1)
        total = sum(rollouts.counts) + rollouts.below + rollouts.above
        inside = [
            (rounded((low + high) / 2), rounded(100 * count / total))
            for (low, high), count in zip(pairwise(edges), rollouts.counts, strict=True)
            if -REACH <= (low + high) / 2 <= REACH
        ]
        options.append((arm.id, f"{arm.label}, step {rollouts.step}"))
        traces.append(
            {
                "type": "bar",
                "x": [centre for centre, _ in inside],
                "y": [share for _, share in inside],
                "yaxis": "y2",
                "name": plot_label(f"tokens of {arm.label}"),
                "marker": {"color": colour(Look(None, "circle", "solid")), "opacity": 0.35},
                "hovertemplate": "log r = %{x}: %{y} % of tokens<extra></extra>",
                "meta": {"run": arm.id, "slot": None},
            }
        )
    traces += [_weight(place, name) for place, name in enumerate(WEIGHTS)]
    return Panel(
        "ratios",
        "divergence",
        "Importance ratios and weights",
        "Lines: policy-gradient weight, left. Bars: % of the step's response tokens, right",
        traces,
        {
            **layout(
                x="r = π student / π reference",
                y="weight",
                xaxis={
                    "range": [-REACH, REACH],
                    "tickvals": [rounded(float(np.log(tick))) for tick in _TICKS],
                    "ticktext": [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in _TICKS],
                },
                yaxis={"range": [-6, 6], "tickvals": [*range(-6, 7, 2)], "zeroline": True, "overlaying": "y2"},
                yaxis2={"title": {"text": "% of tokens"}, "side": "right", "showgrid": False, "rangemode": "tozero"},
            ),
            "showlegend": True,
            "bargap": 0,
        },
        (Control("run", "Tokens of", tuple(options)),),
    )


def _weight(place: int, name: str) -> Trace:
    how = look(place)
    u = np.linspace(-REACH, REACH, 81)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [rounded(float(value)) for value in u],
        "y": [rounded(float(value)) for value in WEIGHTS[name](u)],
        "name": name,
        "line": {"color": colour(how), "width": 2, "dash": ("solid", "dash")[place % 2]},
        "hovertemplate": "log r = %{x}: %{y}<extra>%{fullData.name}</extra>",
        "meta": {"slot": how.slot},
    }
