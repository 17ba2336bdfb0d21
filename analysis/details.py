"""What an arm was set to and what its rollouts look like, from the directory of its first run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.rollouts import Rollouts, read_rollouts
from opd.records import RecordError, RunDir


@dataclass(frozen=True)
class Details:
    """One arm.

    Attributes:
        config: dotted key → value, of the resolved config.
        ranks: how many processes computed it, hence how many devices a step's seconds count for; 1 where not recorded.
        rollouts: of the last step that has a readable record of them.
    """

    config: Mapping[str, Any]
    ranks: int
    rollouts: Rollouts | None


def read_details(runs: Iterable[tuple[str, RunDir]]) -> dict[str, Details]:
    """Arm → its details; `runs` are (arm, directory), of which the first of each arm is read. No record raises."""
    first: dict[str, RunDir] = {}
    for arm, run in runs:
        first.setdefault(arm, run)
    return {arm: Details(flat(run.config()), _ranks(run), _rollouts(run)) for arm, run in first.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted key → value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _ranks(run: RunDir) -> int:
    try:
        ranks = run.manifest().get("world_size")
    except RecordError:
        return 1
    return ranks if type(ranks) is int and ranks > 0 else 1


def _rollouts(run: RunDir) -> Rollouts | None:
    for step in reversed(run.rollouts()):
        try:
            return read_rollouts(run, step)
        except RecordError:
            continue
    return None
