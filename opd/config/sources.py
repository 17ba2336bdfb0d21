"""The sources of benchmarks, completed: what a user gives of one, or a name or file alone, and what its file in
`conf/benchmark` has besides.
"""

import re
from pathlib import PurePath
from typing import Any

from opd.config import plugins
from opd.config.identity import as_today
from opd.errors import UserError

# Ends of names by which an entry of evaluate.benchmarks is known as a file.
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def complete(config: Any) -> None:
    """Give each of a composed config's `evaluate.benchmarks` a whole source, in place.

    A name gets the source that `conf/benchmark` has for it, a file of problems one named after it; keys that are given
    as `evaluate.sources.NAME.KEY` replace theirs.

    Raises:
        UserError: for a source that is no benchmark, or two of one name.
    """
    from omegaconf import OmegaConf

    evaluate: Any = OmegaConf.to_container(config, resolve=False).get("evaluate")  # pyright: ignore
    if not isinstance(evaluate, dict) or not isinstance(named := evaluate.get("benchmarks"), list):
        return
    given: Any = evaluate.get("sources") or {}
    names = [_name(entry) if _is_file(entry, given) else entry for entry in named]
    for name, entry in zip(names, named, strict=True):
        own = given.get(name) or {}
        if name != entry and (names.count(name) > 1 or "kind" in own):
            raise UserError(
                f"evaluate.benchmarks: {entry} is not the only benchmark with the name {name}; give it another, as "
                f"evaluate.benchmarks=[mine] evaluate.sources.mine.file={entry}"
            )
        if isinstance(own, dict) and "kind" not in own and (name != entry or own or name in plugins.files("benchmark")):
            file = {"file": entry} if name != entry else {}
            whole = OmegaConf.merge(_kept(None if file else name), file, own)
            OmegaConf.update(config, f"evaluate.sources.{name}", whole, merge=False, force_add=True)
    for name, source in given.items():
        if name not in names and isinstance(source, dict) and "kind" not in source:
            raise UserError(
                f"evaluate.sources.{name}: is not in evaluate.benchmarks; add it, as "
                f"evaluate.benchmarks=[{','.join([*map(str, named), name])}]"
            )
    OmegaConf.update(config, "evaluate.benchmarks", names, force_add=True)


def with_later_keys(values: dict[str, Any]) -> None:
    """Give sources in a plug-in's files the keys that came after these were written, in place."""
    given = {
        section: {name: content[name]}
        for section, name in (("prompts", "source"), ("evaluate", "sources"))
        if isinstance(content := values.get(section), dict) and name in content
    }
    for section, content in as_today(given).items():
        if section in given:
            values[section] |= {name: content[name] for name in given[section]}


def _is_file(entry: Any, sources: dict[str, Any]) -> bool:
    return isinstance(entry, str) and entry not in sources and ("/" in entry or entry.lower().endswith(FILES))


def _name(file: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", PurePath(file).stem).lstrip("._+-") or "own"


def _kept(name: str | None) -> Any:
    """The source that `conf/benchmark` has for a name, or what all of them have in common."""
    from omegaconf import OmegaConf

    files = plugins.files("benchmark")
    own: Any = OmegaConf.load(files[name]) if name in files else OmegaConf.create()
    own.pop("defaults", None)
    return OmegaConf.merge(OmegaConf.load(files["base"]), own) if own.get("kind", "dataset") == "dataset" else own
