"""The terms of `signal` as their sources declare them. Nothing here imports torch."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from opd.check import signatures
from opd.config import plugins
from opd.config.schema import RunConfig, Weight
from opd.errors import UserError

# The functions of this module that `@term` decorates are the terms.
MODULE = "opd.step.terms"


@dataclass(frozen=True)
class TermSpec:
    """A term: its kind, what it needs, and whether it is the same for all tokens of a response."""

    name: str
    kind: Literal["Advantage", "Loss"]
    needs: tuple[str, ...]
    constant: bool


def terms() -> dict[str, str]:
    """The import path of each term by its name: ours, and those of the plug-ins' own modules."""
    return {
        name: f"{module}.{name}"
        for module in (MODULE, *plugins.used())
        for name in signatures.decorated(module, "term")
    }


def term_spec(name: str) -> TermSpec:
    """The term of a name.

    Raises:
        UserError: where there is none.
    """
    target = terms().get(name)
    if target is None:
        near = difflib.get_close_matches(name, terms(), n=1)
        right = f"did you mean signal.{near[0]}?" if near else f"the terms are {', '.join(terms())}"
        raise UserError(f"signal.{name}: there is no such term; {right}")
    kind = signatures.returns(target)
    assert kind in ("Advantage", "Loss"), target
    return TermSpec(name, kind, signatures.trait(target, "needs") or (), bool(signatures.trait(target, "constant")))


def weighted_terms(config: RunConfig) -> list[TermSpec]:
    """The terms that have a weight at some point of training."""
    return [term_spec(name) for name, weight in config.signal.items() if has_weight(weight)]


def has_weight(weight: Weight) -> bool:
    """Whether it is above 0 at some point of training."""
    return any(weight) if isinstance(weight, Sequence) else weight != 0


def uses_anchor(config: RunConfig) -> bool:
    """Whether the anchor is to score the responses."""
    return config.shaping.extrapolation != 1 or any("anchor" in term.needs for term in weighted_terms(config))


def uses_grades(config: RunConfig) -> bool:
    """Whether the responses are to be graded."""
    return graded_by(config) is not None


def graded_by(config: RunConfig) -> str | None:
    """The key for which the responses are to be graded."""
    if config.shaping.pass_rate_power > 0:
        return "shaping.pass_rate_power"
    return next((f"signal.{term.name}" for term in weighted_terms(config) if "grade" in term.needs), None)
