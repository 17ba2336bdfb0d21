"""Figure 5 of the adventures post: the importance ratios that occur, and the weight that each divergence gives them."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from analysis.figures.panel import GREY, Control, Panel, Trace, layout, rounded, scatter, style
from analysis.results import Results
from analysis.rollouts import Rollouts

Weight = Callable[[Float[np.ndarray, " point"]], Float[np.ndarray, " point"]]

REACH = 4.0  # nats to either side: r from e^-4 to e^4
# Policy-gradient weight -(f'(r) - f'(1)) as a function of u = log r, as in `opd.objective.divergence`; the naive k3 is
# the value form that the post shows to be biased.
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
    """The weights, over the share of a step's tokens at each ratio; None where no run recorded rollouts."""
    details = results.records.details
    recorded = [
        (arm, rollouts)
        for arm in results.arms
        if arm.id in details and (rollouts := details[arm.id].rollouts) and sum(rollouts.counts)
    ]
    if not recorded:
        return None
    u = np.linspace(-REACH, REACH, 81)
    weights = [
        scatter(
            name,
            own := style(position),
            [rounded(float(value)) for value in u],
            [rounded(float(value)) for value in weight(u)],
            {},
            hover="log r = %{x}: %{y}",
            mode="lines",
            line={"color": own.color, "width": 2, "dash": ("solid", "dash")[position % 2]},
        )
        for position, (name, weight) in enumerate(WEIGHTS.items())
    ]
    return Panel(
        "ratios",
        "divergence",
        "Importance ratios and weights",
        "Lines: policy-gradient weight, left. Bars: % of the step's response tokens, right",
        [*(_histogram(arm.id, arm.label, rollouts) for arm, rollouts in recorded), *weights],
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
        (Control("run", "Tokens of", tuple((arm.id, f"{arm.label}, step {own.step}") for arm, own in recorded)),),
    )


def _histogram(arm: str, label: str, rollouts: Rollouts) -> Trace:
    edges = np.linspace(rollouts.low, rollouts.high, len(rollouts.counts) + 1)
    total = sum(rollouts.counts) + rollouts.below + rollouts.above
    bins = [
        (rounded((low + high) / 2), rounded(100 * count / total))
        for (low, high), count in zip(pairwise(edges), rollouts.counts, strict=True)
        if -REACH <= (low + high) / 2 <= REACH
    ]
    return scatter(
        f"tokens of {label}",
        GREY,
        [centre for centre, _ in bins],
        [share for _, share in bins],
        {"run": arm},
        hover="log r = %{x}: %{y} % of tokens",
        type="bar",
        mode=None,
        line=None,
        yaxis="y2",
        marker={"color": GREY.color, "opacity": 0.35},
    )
