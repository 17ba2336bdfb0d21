"""The config of an arm and its rollouts, from the directory of its first run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.rollouts import Rollouts, read_rollouts
from opd.config.flat import flat
from opd.printable import printable
from opd.records.files import RecordError
from opd.records.run_dir import RunDir


@dataclass(frozen=True)
class ArmDetails:
    """What is read once an arm.

    Attributes:
        config: dotted key → value, of the resolved config.
        ranks: number of processes, and so of devices that a step's seconds count for; 1 where not recorded.
        rollouts: those of the last step whose record of them can be read.
    """

    config: Mapping[str, Any]
    ranks: int
    rollouts: Rollouts | None


def read_details(
    runs: Iterable[tuple[str, str, RunDir]],
) -> tuple[dict[str, ArmDetails], list[tuple[str, str, str]]]:
    """Arm → its details, and the records that cannot be read, as (run, left out, reason). Never raises for a record.

    `runs` are (arm, name of the run, directory); the first of each arm is read.
    """
    details: dict[str, ArmDetails] = {}
    damage: list[tuple[str, str, str]] = []
    for arm, path, run in runs:
        if arm not in details:
            rollouts, damaged = _rollouts(run)
            damage += [(path, f"its rollouts at step {step}", reason) for step, reason in damaged]
            details[arm] = ArmDetails(flat(run.config()), _ranks(run), rollouts)
    return details, damage


def _ranks(run: RunDir) -> int:
    try:
        ranks = run.manifest().get("world_size")
    except RecordError:
        return 1
    return ranks if type(ranks) is int and ranks > 0 else 1


def _rollouts(run: RunDir) -> tuple[Rollouts | None, list[tuple[int, str]]]:
    """The last record that can be read, and the steps of later ones that cannot, with the reason."""
    damaged = []
    for step in reversed(run.rollouts()):
        try:
            return read_rollouts(run, step), damaged
        except RecordError as error:
            damaged.append((step, printable(str(error).replace(f"{run.path}/", ""), limit=300)))
    return None, damaged
