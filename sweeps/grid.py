"""A sweep as data: the `sweep` node of `conf/sweep/NAME.yaml`, and the arms that its grid expands to.

    grid:                                                      arms are the union of these blocks
      - {+experiment: [mis, naive]}                            a list
      - {gamma: "range(0, 1, 0.25)", whitening: [none, batch]}   a product; a string is an axis in Hydra's own syntax
      - {"name, optim.lr": [[low, 1.0e-6], [high, 1.0e-4]]}    axes that change together
    include: [stability]                                       the arms of another sweep too

An axis that makes sense only with certain choices belongs in a block with them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.config.identity import override_as_today
from opd.config.recipe import STRICT, Text
from opd.config.schema import CONF, Name
from opd.config.words import key_of, typed
from opd.errors import UserError
from sweeps.validation import validate

Metric = Annotated[str, Field(pattern=r"^(mean|best|maj)@[1-9][0-9]* (max|last)$|^report only$")]
Axes = dict[Text, list[Any] | Text]

# The overrides of an arm, as typed on a command line.
Arm = tuple[str, ...]


@dataclass(config=STRICT, frozen=True)
class Sweep:
    """What a published figure or table compares.

    `baseline` is the `name` of the arm to compare with, `claims` are ids of the published claims that the sweep tests,
    `metric` decides them. Every arm is run with each of `seeds`, but for the runs that `exports` hold: folders of
    exported studies (`analysis.study`).
    """

    name: Name
    baseline: Name
    claims: list[Name]
    metric: Metric
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    grid: list[Axes]
    include: list[Name]
    exports: list[Text]


def read(node: Any) -> Sweep:
    """The `sweep` node of a composed config.

    Raises:
        UserError: for the first thing wrong with it, by its key.
    """
    if node is None:
        raise UserError("sweep: none is chosen; choose one with +sweep=NAME: " + ", ".join(names()))
    sweep: Sweep = validate(Sweep, node, "sweep", "a sweep")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"sweep.seeds={sweep.seeds}: contains a seed twice")
    return sweep


def names() -> list[str]:
    """The names of all sweeps."""
    return sorted(file.stem for file in (CONF / "sweep").glob("*.yaml") if file.stem != "base")


def arms(sweep: Sweep) -> list[Arm]:
    """The arms, each once, in the order of the file and then of the sweeps that it includes.

    Raises:
        UserError: for an axis that clashes with another or has no values, or a sweep without arms.
    """
    unique: dict[Arm, None] = {}
    for where, block in _blocks(sweep):
        for arm in _product(where, block):
            unique.setdefault(tuple(map(override_as_today, arm)), None)
    if not unique:
        raise UserError(f"sweep.grid: sweep={sweep.name} has no arms; give axes, or a sweep to include")
    return list(unique)


def keys(arms: list[Arm]) -> set[str]:
    """The config keys and groups that any arm sets."""
    return {key_of(override) for arm in arms for override in arm}


def refuse_clashes(overrides: Sequence[str], arms: list[Arm]) -> None:
    """Raise `UserError` for an override that sets what the arms or seeds of a sweep set, or gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    axes = keys(arms)
    for text in overrides:
        key = key_of(text)
        if key == "seed":
            raise UserError(f"{text}: axes clash: the seeds of a sweep are sweep.seeds=[…]")
        if key in axes:
            raise UserError(f"{text}: axes clash: {key} is an axis of the sweep, whose values this would replace")
        if "," in text and OverridesParser.create().parse_override(text).is_sweep_override():
            raise UserError(f"{text}: gives several values; write the axis into sweep.grid")


def _blocks(sweep: Sweep) -> Iterator[tuple[str, Axes]]:
    yield from ((f"sweep.grid[{place}]", block) for place, block in enumerate(sweep.grid))
    seen, waiting = {sweep.name}, list(sweep.include)
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        node = _file(name)
        waiting += node.get("include", [])
        yield from ((f"conf/sweep/{name}.yaml: grid[{place}]", block) for place, block in enumerate(node["grid"]))


def _file(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if name not in names():
        raise UserError(f"sweep.include: there is no sweep {name!r}; there are {', '.join(names())}")
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / f"{name}.yaml").sweep)
    return {"grid": []} | node


def _product(where: str, block: Mapping[str, Any]) -> Iterator[Arm]:
    axes, seen = [], set()
    for title, values in block.items():
        together = [key.strip() for key in title.split(",")]
        for key in together:
            bare = key_of(key)
            if bare == "seed":
                raise UserError(f"{where}: seed cannot be an axis; the seeds of all arms are sweep.seeds")
            if bare in seen or not bare:
                raise UserError(f"{where}: axes clash: {bare or title} is given twice")
            seen.add(bare)
        axes.append(list(_axis(where, title, together, values)))
    for choice in itertools.product(*axes):
        yield tuple(override for part in choice for override in part)


def _axis(where: str, title: str, together: list[str], values: Any) -> Iterator[Arm]:
    if isinstance(values, str):
        if len(together) > 1:
            raise UserError(f"{where}: axes that change together ({title}) need a list of lists")
        yield from ((override,) for override in _hydra_axis(where, title, values))
        return
    if not values:
        raise UserError(f"{where}: axis {title} has no values")
    for value in values:
        row = value if len(together) > 1 else [value]
        if not isinstance(row, list) or len(row) != len(together):
            raise UserError(f"{where}: {title} is {len(together)} axes, but {value!r} does not give each a value")
        yield tuple(f"{key}={typed(inner)}" for key, inner in zip(together, row, strict=True))


def _hydra_axis(where: str, key: str, text: str) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
        if not override.is_discrete_sweep():
            raise UserError(
                f"{where}: {key}={text} is a single value; an axis is a list, as [A, B] or range(0, 1, 0.1)"
            )
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"{where}: {key}={text} is not an axis ({str(error).splitlines()[0]})") from None
