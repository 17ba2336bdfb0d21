"""The runs of a sweep, every one composed and checked before anything is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opd import check, cli, records
from opd.config import RunConfig
from opd.errors import UserError
from sweeps import grid
from sweeps.compose import Composer
from sweeps.grid import Arm, Sweep


@dataclass(frozen=True)
class Planned:
    """One run: its identity, the arm it is of, its resolved config."""

    id: str
    arm: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a sweep comes to. `bad` are the runs that may not start, with the reason; `twins` pairs of arms that differ
    in nothing but their name.
    """

    sweep: Sweep
    study: Path
    num_arms: int
    runs: list[Planned]
    bad: list[tuple[str, str]]
    twins: list[tuple[str, str]]


def plan(composer: Composer, overrides: Sequence[str], *, ranks: int) -> Plan:
    """`+sweep=NAME <overrides>` → its runs, each once, whichever arms come to it.

    Raises:
        UserError: for a sweep that cannot be read, or whose axes clash.
    """
    mine, rest = _split(overrides)
    grid.refuse_clashes(rest, [])
    try:
        sweep = grid.read(_node(composer.composed([*mine, *rest])))
    except UserError:
        raise
    except Exception as error:
        if said := cli.mendable(error):
            raise UserError(said) from None
        raise
    arms = grid.arms(sweep)
    grid.refuse_clashes(rest, arms)
    if fixed := sorted(grid.keys(arms) & {"study", "paths.outputs", "paths.models", "paths.data"}):
        raise UserError(f"{fixed[0]}: is no axis, for a sweep's runs lie together; set it beside +sweep={sweep.name}")
    found: dict[str, Planned] = {}
    bad, study = [], None
    for arm in arms:
        try:
            for config in _seeds(composer, [*rest, *arm], sweep.seeds):
                _shareable(config, ranks)
                run = _planned(arm, config)
                study = Path(run.config["paths"]["outputs"]) / config.study
                found.setdefault(run.id, run)
        except UserError as error:
            bad.append((" ".join(arm) or "default", str(error)))
    return Plan(sweep, study or Path(), len(arms), list(found.values()), bad, _twins(list(found.values())))


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    mine = [text for text in overrides if grid.key_of(text).split(".")[0] == "sweep"]
    if not any(text.startswith("+sweep=") for text in mine):
        grid.read(None)
    if hydra := [text for text in overrides if grid.key_of(text).startswith("hydra")]:
        raise UserError(f"{hydra[0]}: belongs to python -m opd.train -m; here the cluster is chosen with cluster=NAME")
    return mine, [text for text in overrides if text not in mine]


def _node(composed: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(composed.sweep, resolve=True, throw_on_missing=True)


def _seeds(composer: Composer, overrides: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    if any("${seed" in text for text in overrides):
        return [composer.config([*overrides, f"seed={seed}"]) for seed in seeds]
    # No file of conf/ asks for the seed, so one composition serves them all; a test holds it to that.
    first = composer.config([*overrides, f"seed={seeds[0]}"])
    return [replace(first, seed=seed) for seed in seeds]


def _planned(arm: Arm, config: RunConfig) -> Planned:
    content = check.as_dict(config)
    identity = records.run_id(content)
    # A run may start elsewhere than it was submitted.
    for key in ("outputs", "models", "data"):
        if content["paths"][key] is not None:
            content["paths"][key] = str(Path(content["paths"][key]).absolute())
    return Planned(identity, " ".join(arm) or "default", content)


def _shareable(config: RunConfig, ranks: int) -> None:
    if config.mini_batch_size % ranks:
        raise UserError(
            f"mini_batch_size={config.mini_batch_size}: must be a multiple of the {ranks} ranks, which share its "
            "prompts evenly"
        )


def _twins(runs: Sequence[Planned]) -> list[tuple[str, str]]:
    seen: dict[str, Planned] = {}
    twins = []
    for run in runs:
        key = records.config_hash({**run.config, "name": ""}) + str(run.config["seed"])
        other = seen.setdefault(key, run)
        if other.config["name"] != run.config["name"]:
            twins.append((other.config["name"], run.config["name"]))
    return list(dict.fromkeys(twins))
