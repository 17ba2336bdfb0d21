"""The published claims: `claims.yaml`, with what makes each claim decidable."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files

import yaml

from analysis.outcomes import Which


@dataclass(frozen=True)
class Settings:
    """The settings of all verdicts, which `claims.yaml` explains. Scores are percentage points, the rest shares."""

    margin: float
    kept: float
    identity: float
    error: float
    power: float
    margins: Mapping[str, float] = field(default_factory=dict)

    def at(self, scale: str | None) -> "Settings":
        """Those of runs of that scale, which may have a margin of its own."""
        return replace(self, margin=self.margins.get(scale or "", self.margin))


@dataclass(frozen=True)
class Witness:
    """What shows that the mechanism of a claim is at work in its runs; fixed before the first of them.

    Attributes:
        metric: a metric of training, whose mean over the steps of all the claim's runs is measured.
        least: the value that it must reach.
        says: the mechanism in words, as "sampler and learner disagree".
    """

    metric: str
    least: float
    says: str


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Attributes:
        id: its name, listed in a sweep's `claims`.
        source, section: where it was published.
        sweep: the one of `conf/sweep` that tests it; the claims of a sweep are corrected together. None where no run
            can test it.
        kind: how it is decided: a key of `decisions.KINDS`.
        says: the claim in one sentence.
        arms: names of runs, in the order that the kind gives a meaning.
        baseline: the names that the arms are compared with.
        score, which: the score it is about: one of `evaluation.SCORES`, at the last step or at the best.
        expected: "above" or "below" the baseline; None where the kind or the effect determines it.
        effect: the published difference in percentage points; None where none was published.
        published: the published result in words.
        witness: the name of what its runs must show (a key of `Published.witnesses`); None where nothing is needed.
        built_in: the scales whose world was built so that the effect is bound to show; it is not judged there.
        why: why nothing is decided; "" where something is.
    """

    id: str
    source: str
    section: str
    kind: str
    says: str
    score: str
    which: Which
    published: str
    sweep: str | None = None
    arms: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    expected: str | None = None
    effect: float | None = None
    witness: str | None = None
    built_in: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Published:
    """`claims.yaml`. `same` maps a name to another that runs of the same config may have."""

    settings: Settings
    same: dict[str, str]
    witnesses: dict[str, Witness]
    claims: tuple[Claim, ...]


@cache
def published() -> Published:
    """The project's list of published claims."""
    content = yaml.safe_load((files("analysis") / "claims.yaml").read_text(encoding="utf-8"))
    return Published(
        Settings(**content["settings"]),
        content["same"],
        {name: Witness(**one) for name, one in content["witnesses"].items()},
        tuple(_claim(**one) for one in content["claims"]),
    )


def _claim(*, metric: str, **entry) -> Claim:
    names = {key: tuple(entry.get(key, ())) for key in ("arms", "baseline", "built_in")}
    return Claim(**{**entry, **names, **dict(zip(("score", "which"), metric.split(), strict=True))})
