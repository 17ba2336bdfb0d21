"""The runs of a sweep, every one composed and checked before anything is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd.check import config as check
from opd.cli import key_of
from opd.config import identity
from opd.config.schema import RunConfig
from opd.errors import UserError
from sweeps import grid
from sweeps.compose import Composer, in_sentences, parse
from sweeps.grid import Arm, Sweep


@dataclass(frozen=True)
class Planned:
    """One run: its identity, the arm it is of, its resolved config."""

    id: str
    arm: Arm
    config: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a sweep comes to.

    `twins` are pairs of arms that are one run, however they are written; `alike` are pairs that differ in nothing but
    their name, and are two runs, for a report knows arms by their names; `bad` are the arms that may not start, with
    the reason.
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
        """What the user may not expect, a sentence each."""
        once = [f"{other} is the same run as {one}, and is not run again" for one, other in self.twins]
        alike = "differ in nothing but their name, and will have the same numbers"
        return once + [f"{one} and {other} {alike}" for one, other in self.alike]

    def refuse_bad(self) -> None:
        """Raises `UserError`, which lists every arm that may not start."""
        if not self.bad:
            return
        number = f"{len(self.bad)} of {self.num_arms} arms"
        said = f"sweep={self.sweep.name}: {number} may not start, so nothing is submitted:"
        if len(self.bad) == 1:
            raise UserError(f"{said} {self.bad[0][0]}: {self.bad[0][1]}")
        if len(reasons := {reason for _, reason in self.bad}) == 1:
            raise UserError(f"{said} {reasons.pop()}")
        raise UserError(said + "".join(f"\n  {arm}: {reason}" for arm, reason in self.bad))


def plan(composer: Composer, overrides: Sequence[str], *, ranks: int) -> Plan:
    """`+sweep=NAME <overrides>` → its runs, each once, whichever arms come to it.

    Raises:
        UserError: for a sweep that cannot be read, or whose axes clash.
    """
    mine, rest = _split(overrides)
    grid.refuse_clashes(rest, [])
    with in_sentences():
        sweep = grid.read(_node(composer.composed([*mine, *rest])))
    arms = grid.arms(sweep)
    grid.refuse_clashes(rest, arms)
    if fixed := sorted(grid.keys(arms) & {"study", "paths.outputs", "paths.models", "paths.data"}):
        raise UserError(f"{fixed[0]}: is no axis, for a sweep's runs lie together; set it beside +sweep={sweep.name}")
    found: list[Planned] = []
    bad, study = [], None
    for arm in arms:
        try:
            for config in _seeds(composer, [*rest, *arm], sweep.seeds):
                _shareable(config, ranks)
                run = _planned(arm, config)
                study = Path(run.config["paths"]["outputs"]) / config.study
                found.append(run)
        except UserError as error:
            bad.append((shown(arm), str(error)))
    return Plan(sweep, study or Path(), len(arms), *_twins(found), bad=bad)


def shown(arm: Arm) -> str:
    """An arm as one would type it."""
    return " ".join(arm) or "default"


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    parsed = parse(overrides)
    mine = [text for text in overrides if key_of(text).split(".")[0] == "sweep"]
    named = [text.removeprefix("+sweep=") for text in mine if text.startswith("+sweep=")]
    if not named:
        grid.read(None)
    if len(named) > 1 or "," in named[0]:
        raise UserError(
            f"+sweep={','.join(named)}: is more than one sweep; submit them one after another (a run that two share is "
            "one run), or give one and sweep.include=[…]"
        )
    for text, override in zip(overrides, parsed, strict=True):
        if text in mine and override.is_sweep_override():
            raise UserError(f"{text}: gives several values; a list is written in brackets, as sweep.seeds=[0,1]")
    if hydra := [text for text in overrides if key_of(text).startswith("hydra")]:
        raise UserError(f"{hydra[0]}: belongs to python -m opd.train -m; here the cluster is chosen with cluster=NAME")
    return mine, [text for text in overrides if text not in mine]


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
    # No file of conf/ asks for the seed, so one composition serves them all; a test holds it to that.
    first = composer.config([*overrides, f"seed={seeds[0]}"])
    return [replace(first, seed=seed) for seed in seeds]


def _planned(arm: Arm, config: RunConfig) -> Planned:
    content = check.as_dict(config)
    run = identity.run_id(content)
    # A run may start elsewhere than it was submitted.
    for key in ("outputs", "models", "data"):
        if content["paths"][key] is not None:
            content["paths"][key] = str(Path(content["paths"][key]).absolute())
    return Planned(run, arm, content)


def _shareable(config: RunConfig, ranks: int) -> None:
    if config.mini_batch_size % ranks:
        raise UserError(
            f"mini_batch_size={config.mini_batch_size}: must be a multiple of the {ranks} ranks, which share its "
            "prompts evenly"
        )


def _twins(runs: Sequence[Planned]) -> tuple[list[Planned], list[tuple[str, str]], list[tuple[str, str]]]:
    """Each run once; pairs of arms that are one run; pairs of arms that differ in nothing but their name."""
    kept: dict[str, Planned] = {}
    unnamed: dict[str, Planned] = {}
    same: dict[tuple[str, str], None] = {}
    alike: dict[tuple[str, str], None] = {}
    for run in runs:
        if (one := kept.setdefault(run.id, run)) is not run:
            same[shown(one.arm), shown(run.arm)] = None
            continue
        content = identity.config_hash({**run.config, "name": ""}) + str(run.config["seed"])
        if (one := unnamed.setdefault(content, run)) is not run:
            alike[shown(one.arm), shown(run.arm)] = None
    return list(kept.values()), list(same), list(alike)
