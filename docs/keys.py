"""`python -m docs.keys` writes keys.md: every key of a run's config, from the schema and `conf/`."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from docs.tables import table
from opd.check.config import COMMON_KNOBS
from opd.config import plugins
from opd.config.described import DESCRIBED
from opd.config.schema import CONF, RunConfig
from opd.config.words import parts
from sweeps.compose import composer

DOCS = Path(__file__).parent
INTRODUCTION = """\
# Every key

Made by `make docs` from the schema and `conf/`. Any key is set by its name: `python -m opd.train gamma=0.5`. A group is
chosen by the name of one of its files: `divergence=hellinger`; the knobs of methods are those of
[their functions](each-method.md). The default is that of `python -m opd.train` without arguments, which has
`scale=tiny`; other scales and experiments set others.

"""


def main() -> None:
    """Writes the page."""
    (DOCS / "keys.md").write_text(page())


def page() -> str:
    """Markdown: a table for each section."""
    sections: dict[str, list[tuple[str, ...]]] = {}
    for key, kind in every_key():
        section = key.partition(".")[0] if "." in key else ""
        sections.setdefault(section, []).append((f"`{key}`", DESCRIBED[key], values(key, kind), default(key)))
    head = ("key", "what for", "values", "default")
    titles = [(f"## {name}\n\n" if name else "") + table(head, rows) for name, rows in sections.items()]
    return INTRODUCTION + "\n".join(titles)


def every_key() -> list[tuple[str, Any]]:
    """(key, its type): those without a section first; sources of problems as those of the prompts."""
    found = dict(_keys(RunConfig))
    found |= {f"{group}.{knob}": kind for group, knobs in COMMON_KNOBS.items() for knob, kind in knobs.items()}
    return sorted(found.items(), key=lambda pair: "." in pair[0])


def _keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for entry in fields(kind):
        key = f"{prefix}{entry.name}"
        inner = [each for each in parts(entry.type) if is_dataclass(each)]
        for each in inner:
            yield from _keys(each, f"{key}.")
        if not inner:
            yield key, entry.type


def values(key: str, kind: Any) -> str:
    """What a key may be, in words."""
    if key in _SAID:
        return _SAID[key]
    if plugins.is_group(key):
        return ", ".join(f"`{name}`" for name in sorted(plugins.files(key)) if name != "base")
    if key.endswith(".kind"):
        return ", ".join(f"`{name}`" for name in _KINDS[key])
    return _words(TypeAdapter(kind).json_schema())


_SAID = {
    "signal": "weights by [name](methods.md#credit-shaping-and-what-is-learned)",
    "prompts.date": "date, YYYY-MM-DD or YYYY-MM-DDTHH:MM, or null",
    "prompts.source.grader": "`mathematics`, `exact`, or a function of a plug-in",
    "prompts.source.function": "`_target_` and its knobs",
    "prompts.source.mix": "{domain: [difficulty, …], …}",
    "prompts.source.weights": "{name: number > 0, …} or null",
}
_KINDS = {
    "prompts.source.kind": ("arithmetic", "puzzles", "dataset", "function", "mixture"),
    "tracker.kind": ("none", "wandb", "tensorboard", "trackio", "mlflow"),
}


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(each) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list: {_words(schema['items'])}" if schema.get("items") else "list"
    named = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "null",
    }
    kind = named.get(schema.get("type", ""), "by name")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds.items() if bound in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def default(key: str) -> str:
    """A key's value in the default run, or the key that it follows; a dash where that run does not have it."""
    if plugins.is_group(key):
        return f"`{_defaults()[key]}`"
    value: Any = _composed()
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return "–"
        value = value[part]
    if isinstance(value, dict):
        return "–"
    text = {"True": "true", "False": "false", "None": "null", "": "''"}.get(str(value), str(value))
    if follows := re.fullmatch(r"\$\{([\w.]+)\}", text):
        return f"as `{follows[1]}`"
    return "follows the scale" if "${" in text else f"`{text}`"


@cache
def _composed() -> dict[str, Any]:
    with composer() as composing:
        content: Any = OmegaConf.to_container(composing.composed([]), resolve=False)
    return content


@cache
def _defaults() -> dict[str, str]:
    """Group → the choice of the default run."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    return {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items()}


if __name__ == "__main__":
    main()
