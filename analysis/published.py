"""What was published, as data: `claims.yaml`, with what makes each claim decidable."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from analysis.outcomes import Which


@dataclass(frozen=True)
class Settings:
    """What all verdicts share; `claims.yaml` says what each is for. Scores are percentage points, the rest shares."""

    margin: float
    kept: float
    identity: float
    error: float
    power: float


@dataclass(frozen=True)
class Claim:
    """One published claim.

    Attributes:
        id: its name, which a sweep's `claims` holds.
        source, section: where it was published.
        sweep: the one of `conf/sweep` that tests it; its claims are corrected together. None where no run can.
        kind: how it is decided: a key of `decisions.KINDS`.
        says: what it says, in one sentence.
        arms: names of runs, in the order that the kind gives a meaning.
        baseline: the names that the arms are compared with.
        score, which: on what: a score of `evaluation.SCORES`, at the last step or at its best.
        expected: "above" or "below" the baseline; None where the kind or the effect says it.
        effect: the published difference in percentage points; None where none was.
        published: the published result in words.
        why: why nothing is decided; "" where something is.
    """

    id: str
    source: str
    section: str
    sweep: str | None
    kind: str
    says: str
    arms: tuple[str, ...]
    baseline: tuple[str, ...]
    score: str
    which: Which
    expected: str | None
    effect: float | None
    published: str
    why: str


@dataclass(frozen=True)
class Published:
    """`claims.yaml`. `same` maps a name to another that runs of the same config may bear."""

    settings: Settings
    same: dict[str, str]
    claims: tuple[Claim, ...]


@cache
def published() -> Published:
    """The project's list of published claims."""
    found = yaml.safe_load((files("analysis") / "claims.yaml").read_text(encoding="utf-8"))
    return Published(Settings(**found["settings"]), found["same"], tuple(_claim(**entry) for entry in found["claims"]))


def _claim(*, metric: str, **entry) -> Claim:
    score, which = metric.split()
    optional = {"sweep": None, "expected": None, "effect": None, "why": ""}
    arms = {key: tuple(entry.pop(key, ())) for key in ("arms", "baseline")}
    return Claim(**{**optional, **entry, **arms, "score": score, "which": which})
