"""Where runs run: the typed schema of `conf/cluster`."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from opd.check.credentials import refuse_credentials
from opd.config.places import CONF
from opd.config.recipe import STRICT, Count, Text
from opd.errors import UserError

Number = Annotated[int, Field(ge=0)]
# These stand in the script that a shell runs: one line each.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Option = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


@dataclass(config=STRICT, frozen=True)
class Local:
    """This machine, in processes that outlive the terminal."""

    kind: Literal["local"]
    max_parallel: Count
    ranks: Count
    max_retries: Number

    @property
    def gpus(self) -> int:
        return self.ranks


@dataclass(config=STRICT, frozen=True)
class Slurm:
    """A SLURM cluster. `sbatch` holds any other options of sbatch, `setup` shell commands before a run."""

    kind: Literal["slurm"]
    max_parallel: Count
    nodes: Count
    ranks_per_node: Count
    gpus_per_rank: Number
    cpus_per_rank: Count
    mem: Line | None
    time: Count
    signal_before: Annotated[int, Field(ge=1)]
    partition: Line | None
    account: Line | None
    qos: Line | None
    constraint: Line | None
    sbatch: dict[Option, Line | int | bool]
    setup: list[Text]
    python: Line | None
    max_retries: Number
    max_requeues: Number

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def gpus(self) -> int:
        return self.ranks * max(1, self.gpus_per_rank)


Cluster = Local | Slurm
_KINDS: dict[str, Any] = {"local": Local, "slurm": Slurm}
# Options of sbatch that the submission itself sets.
_OURS = {
    "array", "job-name", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "dependency", "nodes",
    "ntasks", "ntasks-per-node", "time", "partition", "account", "qos", "constraint", "mem", "cpus-per-task",
    "gpus-per-task", "wrap", "parsable",
}  # fmt: skip


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's arguments, parted into those of the cluster and the rest."""
    ours = [text for text in arguments if text.partition("=")[0].lstrip("+~").split(".")[0] == "cluster"]
    return ours, [text for text in arguments if text not in ours]


def read(arguments: Sequence[str]) -> Cluster:
    """The cluster that `cluster=NAME cluster.KEY=VALUE …` choose, `local` without any.

    Raises:
        UserError: for an unknown name or key, or a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from sweeps.compose import parse

    given = {}
    for text, override in zip(arguments, parse(arguments), strict=True):
        if override.is_delete():
            raise UserError(f"{text}: no key of a cluster can be taken out; give it a value")
        if override.is_sweep_override():
            raise UserError(f"{text}: gives several values, and a submission goes to one cluster; give one")
        given[override.key_or_group] = override.value()
    name = given.pop("cluster", "local")
    known = sorted(file.stem for file in (CONF / "cluster").glob("*.yaml"))
    if name not in known:
        raise UserError(f"cluster={name}: there is no such cluster; conf/cluster has {', '.join(known)}")
    try:
        values = OmegaConf.load(CONF / "cluster" / f"{name}.yaml")
        for key, value in given.items():
            OmegaConf.update(values, key.removeprefix("cluster."), value, merge=True)
        return parse_cluster(OmegaConf.to_container(values, resolve=True), name)
    except YAMLError as error:
        raise UserError(f"cluster={name}: {name}.yaml cannot be read ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        raise UserError(f"cluster: {str(error).splitlines()[0]}") from None


def parse_cluster(values: Any, name: str) -> Cluster:
    """Plain values → a cluster; raises `UserError` with the key that is wrong."""
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in _KINDS:
        raise UserError(f"cluster.kind={kind!r}: should be 'local' or 'slurm'")
    try:
        found = TypeAdapter(_KINDS[kind]).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]).encode("unicode_escape").decode()
        if first["type"] == "unexpected_keyword_argument":
            near = difflib.get_close_matches(key, [field.name for field in fields(_KINDS[kind])], n=1)
            hint = f"; did you mean cluster.{near[0]}?" if near else ""
            raise UserError(f"cluster.{key}: cluster={name} has no such key{hint}") from None
        if first["type"] in ("missing", "missing_argument"):
            raise UserError(f"cluster.{key}: is missing; give it a value") from None
        right = first["msg"].replace("Input should", "should", 1)
        raise UserError(f"cluster.{key}={first['input']!r}: {right[0].lower()}{right[1:]}") from None
    refuse_credentials({"cluster": values})
    if isinstance(found, Slurm):
        _consistent(found)
    return found


def _consistent(slurm: Slurm) -> None:
    if clash := sorted(_OURS & {key.replace("_", "-") for key in slurm.sbatch}):
        own = f"set cluster.{clash[0].replace('-', '_')} instead" if hasattr(slurm, clash[0]) else "leave it out"
        raise UserError(f"cluster.sbatch.{clash[0]}: the submission sets this itself; {own}")
    if slurm.signal_before >= slurm.time * 60:
        raise UserError(
            f"cluster.signal_before={slurm.signal_before}: must be below cluster.time={slurm.time} min, "
            f"{slurm.time * 60} s, or a run is told to leave before it starts"
        )
    if slurm.gpus_per_rank > 1:
        raise UserError(f"cluster.gpus_per_rank={slurm.gpus_per_rank}: a rank drives one GPU; add ranks_per_node")
