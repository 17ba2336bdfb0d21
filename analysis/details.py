"""What an arm was set to and what its rollouts look like, from the directory of its first run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.differences import flat
from analysis.rollouts import Rollouts, read_rollouts
from analysis.text import printable
from opd.records.run_dir import RecordError, RunDir


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


def read_details(
    runs: Iterable[tuple[str, str, RunDir]],
) -> tuple[dict[str, Details], list[tuple[str, str, str]]]:
    """Arm → its details, and what of them cannot be read, as (run, left out, reason). No record raises.

    `runs` are (arm, name of the run, directory), of which the first of each arm is read.
    """
    found: dict[str, Details] = {}
    damage: list[tuple[str, str, str]] = []
    for arm, path, run in runs:
        if arm in found:
            continue
        rollouts, torn = _rollouts(run)
        damage += [(path, f"its rollouts at step {step}", reason) for step, reason in torn]
        found[arm] = Details(flat(run.config()), _ranks(run), rollouts)
    return found, damage


def _ranks(run: RunDir) -> int:
    try:
        ranks = run.manifest().get("world_size")
    except RecordError:
        return 1
    return ranks if type(ranks) is int and ranks > 0 else 1


def _rollouts(run: RunDir) -> tuple[Rollouts | None, list[tuple[int, str]]]:
    """The last record that can be read, and the later ones that cannot, with the reason."""
    torn = []
    for step in reversed(run.rollouts()):
        try:
            return read_rollouts(run, step), torn
        except RecordError as error:
            torn.append((step, printable(str(error).replace(f"{run.path}/", ""), limit=300)))
    return None, torn
