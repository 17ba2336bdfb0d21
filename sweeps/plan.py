"""The runs of a sweep, all composed and checked before any is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd.check import config as check
from opd.config import identity
from opd.config.schema import RunConfig
from opd.config.words import key_of
from opd.errors import UserError
from opd.records.begun import as_begun
from sweeps import grid
from sweeps.compose import Composer, parse_overrides, user_errors
from sweeps.grid import Arm, Sweep


@dataclass(frozen=True)
class Planned:
    """A run: its id, its arm, its resolved config."""

    id: str
    arm: Arm
    config: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep.

    `twins` are pairs of arms with the same config, which are one run; `alike` are pairs that differ only in `name`,
    which are two runs because a report knows arms by name; `bad` are the arms that may not start, with the reason.
    """

    sweep: Sweep
    study: Path
    num_arms: int
    runs: list[Planned]
    twins: list[tuple[str, str]]
    alike: list[tuple[str, str]]
    bad: list[tuple[str, str]]

    @property
    def notes(self) -> list[str]:
        """Sentences about twins and alike arms."""
        twins = [f"{other} is the same run as {one}, and is not run again" for one, other in self.twins]
        alike = "differ only in their name, and will give the same numbers"
        return twins + [f"{one} and {other} {alike}" for one, other in self.alike]

    def refuse_bad(self) -> None:
        """Raise `UserError` with every arm that may not start."""
        if not self.bad:
            return
        number = f"{len(self.bad)} of {self.num_arms} arms"
        start = f"sweep={self.sweep.name}: {number} may not start, so nothing is submitted:"
        if len(self.bad) == 1:
            raise UserError(f"{start} {self.bad[0][0]}: {self.bad[0][1]}")
        if len(reasons := {reason for _, reason in self.bad}) == 1:
            raise UserError(f"{start} {reasons.pop()}")
        raise UserError(start + "".join(f"\n  {arm}: {reason}" for arm, reason in self.bad))


def plan(composer: Composer, overrides: Sequence[str], *, ranks: int) -> Plan:
    """The runs of `+sweep=NAME <overrides>`, each once even if several arms are the same run.

    Raises:
        UserError: for a sweep that cannot be read or whose axes clash.
    """
    sweep_overrides, rest = _split(overrides)
    grid.refuse_clashes(rest, [])
    with user_errors():
        sweep = grid.read(_node(composer.composed([*sweep_overrides, *rest])))
    arms = grid.arms(sweep)
    grid.refuse_clashes(rest, arms)
    if fixed := sorted(grid.keys(arms) & {"study", "paths.outputs", "paths.models", "paths.data"}):
        raise UserError(
            f"{fixed[0]}: cannot be an axis, because a sweep's runs share it; give it along with +sweep={sweep.name}"
        )
    runs: list[Planned] = []
    bad, study = [], None
    for arm in arms:
        try:
            for config in _seeds(composer, [*rest, *arm], sweep.seeds):
                _check_ranks(config, ranks)
                run = _planned(arm, as_begun(config))
                study = Path(run.config["paths"]["outputs"]) / config.study
                runs.append(run)
        except UserError as error:
            bad.append((as_typed(arm), str(error)))
    _refuse_one_repository(runs)
    return Plan(sweep, study or Path(), len(arms), *_twins(runs), bad=bad)


def _refuse_one_repository(runs: Sequence[Planned]) -> None:
    pushed: dict[str, str] = {}
    for run in runs:
        name = run.config["hub"]["push"]
        if name is not None and pushed.setdefault(name, run.id) != run.id:
            raise UserError(
                f"hub.push={name}: {pushed[name]} and {run.id} would both be pushed there; give each run one of its "
                "own, as 'hub.push=OWNER/${name}-s${seed}', or hub.push=null"
            )


def as_typed(arm: Arm) -> str:
    """An arm as typed on a command line."""
    return " ".join(arm) or "default"


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    parsed = parse_overrides(overrides)
    ours = [text for text in overrides if key_of(text).split(".")[0] == "sweep"]
    named = [text.removeprefix("+sweep=") for text in ours if text.startswith("+sweep=")]
    if not named:
        grid.read(None)
    if len(named) > 1 or "," in named[0]:
        raise UserError(
            f"+sweep={','.join(named)}: is more than one sweep; submit them one by one (a run that two share is run "
            "once), or give one and sweep.include=[…]"
        )
    for text, override in zip(overrides, parsed, strict=True):
        if text in ours and override.is_sweep_override():
            raise UserError(f"{text}: gives several values; write a list in brackets, as sweep.seeds=[0,1]")
    if hydra := [text for text in overrides if key_of(text).startswith("hydra")]:
        raise UserError(f"{hydra[0]}: belongs to python -m opd.train -m; here the cluster is chosen with cluster=NAME")
    return ours, [text for text in overrides if text not in ours]


def _node(composed: Any) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if "sweep" not in composed:
        return None
    try:
        return OmegaConf.to_container(composed.sweep, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'sweep'}: {str(error).splitlines()[0]}") from None


def _seeds(composer: Composer, overrides: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    if any("${seed" in text for text in overrides):
        return [composer.config([*overrides, f"seed={seed}"]) for seed in seeds]
    # No file of conf/ refers to the seed, which a test checks, so one composition serves all seeds.
    first = composer.config([*overrides, f"seed={seeds[0]}"])
    return [replace(first, seed=seed) for seed in seeds]


def _planned(arm: Arm, config: RunConfig) -> Planned:
    content = check.as_dict(config)
    run = identity.run_id(content)
    # A run may start in another folder than it was submitted from.
    for key in ("outputs", "models", "data"):
        if content["paths"][key] is not None:
            content["paths"][key] = str(Path(content["paths"][key]).absolute())
    return Planned(run, arm, content)


def _check_ranks(config: RunConfig, ranks: int) -> None:
    if config.mini_batch_size % ranks:
        raise UserError(
            f"mini_batch_size={config.mini_batch_size}: must be a multiple of the {ranks} ranks, which share its "
            "prompts equally"
        )


def _twins(runs: Sequence[Planned]) -> tuple[list[Planned], list[tuple[str, str]], list[tuple[str, str]]]:
    """Each run once; pairs of arms that are the same run; pairs of arms that differ only in their name."""
    kept: dict[str, Planned] = {}
    by_content: dict[str, Planned] = {}
    twins: dict[tuple[str, str], None] = {}
    alike: dict[tuple[str, str], None] = {}
    for run in runs:
        if (one := kept.setdefault(run.id, run)) is not run:
            twins[as_typed(one.arm), as_typed(run.arm)] = None
            continue
        content = identity.config_hash({**run.config, "name": ""}) + str(run.config["seed"])
        if (one := by_content.setdefault(content, run)) is not run:
            alike[as_typed(one.arm), as_typed(run.arm)] = None
    return list(kept.values()), list(twins), list(alike)
