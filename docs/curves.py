"""Pictures of weight curves, drawn by calling the methods themselves."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from docs.credit_variance import COLOURS, STYLE
from opd.objective import divergence
from opd.objective.divergence import Divergence, Mixed

LEFT, RIGHT, TOP, BOTTOM = 46, 450, 16, 240
SPAN, HEIGHT = 4.0, 3.0  # |log r| and |weight| at the picture's edges
NUM_POINTS = 161

Curve = tuple[str, list[float], str]


def of_divergence(name: str, function: Callable[..., Any], knobs: dict[str, Any]) -> str:
    """The weight A over log r beside reverse KL's, as SVG; of two mixed divergences both."""
    log_ratios = torch.linspace(-SPAN, SPAN, NUM_POINTS, dtype=torch.float64)
    built = function(**{key: _built(value) for key, value in knobs.items()})
    parts = [("", built)] if isinstance(built, Divergence) else _parts(built)
    curves = [(title or name, found.advantage(log_ratios).tolist()) for title, found in parts]
    drawn: list[Curve] = [(title, ys, colour) for (title, ys), colour in zip(curves, COLOURS, strict=False)]
    if name != "reverse_kl" and not isinstance(built, Mixed):
        drawn.insert(0, ("reverse_kl", divergence.reverse_kl().advantage(log_ratios).tolist(), "#8a8a8a"))
    ticks = [(u, f"{math.exp(u):.2g}") for u in range(-4, 5, 2)]
    said = f"Weight of a token against the ratio r of student to reference: {name}"
    return svg(said, "r, logarithmic", log_ratios.tolist(), drawn, ticks, range(-3, 4))


def of_correction(name: str, function: Callable[..., Any], knobs: dict[str, Any]) -> str:
    """The weight that a token's loss is multiplied by over log ρ, as SVG; 0 where the token leaves the mask."""
    log_ratios = torch.linspace(-2, 2, 401)
    mask = torch.ones(1, len(log_ratios), dtype=torch.bool)
    weight, keep = partial(function, **knobs)(log_ratios[None], torch.zeros_like(mask, dtype=torch.float32), mask)
    ys = torch.where(keep, weight, 0)[0].tolist()
    ticks = [(math.log(rho), f"{rho:g}") for rho in (0.25, 0.5, 1, 2, 4)]
    said = f"Weight of a token against the ratio ρ of learner to sampler: {name}"
    return svg(said, "ρ, logarithmic", log_ratios.tolist(), [(name, ys, COLOURS[0])], ticks, range(4))


def _built(value: Any) -> Any:
    """A knob that is itself a divergence is given by its name."""
    if isinstance(value, dict):
        return getattr(divergence, value["_target_"].rpartition(".")[2])()
    return value


def _parts(mixed: Mixed) -> list[tuple[str, Divergence]]:
    return [("on some tokens", mixed.first), ("on the others", mixed.second)]


def svg(
    said: str,
    axis: str,
    xs: Sequence[float],
    curves: Sequence[Curve],
    ticks: Sequence[tuple[float, str]],
    levels: range,
) -> str:
    """Lines over a common axis; where one leaves the picture it stops. Readable on light and dark."""
    low, high = levels[0], levels[-1]

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - xs[0]) / (xs[-1] - xs[0])

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 290" width="600" height="290" role="img">']
    parts += [f"  <title>{said}</title>", STYLE]
    for level in levels:
        parts.append(f'  <path class="rule" d="M{LEFT} {y(level):.1f}H{RIGHT}"/>')
        parts.append(f'  <text x="{LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level}</text>')
    for value, label in ticks:
        parts.append(f'  <path class="rule" d="M{x(value):.1f} {TOP}V{BOTTOM}"/>')
        parts.append(f'  <text x="{x(value):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{label}</text>')
    parts.append(f'  <text x="{(LEFT + RIGHT) / 2:g}" y="{BOTTOM + 42}" text-anchor="middle">{axis}</text>')
    for place, (title, ys, colour) in enumerate(curves):
        path, pen = [], "M"
        for one, value in zip(xs, ys, strict=True):
            if low <= value <= high:
                path.append(f"{pen}{x(one):.1f} {y(value):.1f}")
                pen = "L"
            else:
                pen = "M"
        parts.append(f'  <path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'  <text x="{RIGHT + 10}" y="{TOP + 14 + 20 * place}" style="fill: {colour}">{title}</text>')
    return "\n".join([*parts, "</svg>", ""])
