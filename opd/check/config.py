"""What may not start: method nodes whose knobs do not fit, and combinations that cannot learn or would ignore a knob.

Nothing here imports torch: what a method's knobs are is read from its source.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from opd.check import signatures
from opd.check.credentials import refuse_credentials
from opd.check.ensemble_rules import refuse_teachers
from opd.check.refusals import RULES
from opd.check.run_rules import without_problems
from opd.check.signal import term_spec, uses_anchor
from opd.check.teacher_rules import with_own_settings
from opd.config import plugins
from opd.config.parsing import parse
from opd.config.recipe import Positive
from opd.config.schema import CONF, Called, DataMixture, Node, Probability, RunConfig
from opd.config.steps import most_prompts, steps
from opd.errors import UserError

# A config may name only functions of its group's modules: no other `_target_` is ever imported or called.
MODULES = {
    "divergence": ("opd.objective.divergence",),
    "support": ("opd.objective.support",),
    "ensemble": ("opd.objective.ensemble",),
    "filter": ("opd.objective.filter",),
    "rollout_correction": ("opd.objective.rollout_correction",),
    "loss": ("opd.objective.loss",),
    "rollout": ("opd.rollout.sampler", "opd.rollout.vllm"),
    "responses": ("opd.rollout.responses",),
    "environment": ("opd.data.environment",),
    "context": ("opd.teacher.context",),
    "alignment": ("opd.teacher.alignment",),
    "grader": ("opd.grading.grader",),
    "problems": (),  # functions of a source of prompts: of plug-ins alone
}


def prepare(composed: Mapping[str, Any], *, trains: bool = True) -> RunConfig:
    """A composed config, parsed, reduced to what it uses, and checked, with the numbers of its methods in one
    spelling, so that 1 and 1.0 are one run. An evaluation, which does not train, needs no prompts.

    Raises:
        UserError: for the first thing wrong with it.
    """
    refuse_credentials(composed)
    config = parse(composed)
    plugins.refuse_missing(config.plugins, "plugins")
    config = selected(config)
    check(config)
    if refusal := without_problems(config, trains=trains):
        raise UserError(refusal)
    return typed(config)


def check(config: RunConfig) -> None:
    """Refuses what cannot run.

    Raises:
        UserError: the first refusal, with the keys, the reason and what would be right.
    """
    for group in MODULES:
        for key, node in nodes(config, group).items():
            check_node(group, node, key)
    ensemble = config.ensemble["_target_"]
    bounds = {name: signatures.trait(ensemble, name) for name in ("at_least", "at_most")}
    refuse_teachers(config.method("ensemble"), len(config.teacher.models), config.ensemble, **bounds)
    for name in config.signal:
        term_spec(name)
    for rule in RULES:
        if refusal := rule.refusal(config):
            raise UserError(refusal)
    if (most := most_prompts(config.prompts.source)) is not None:
        steps(config, most)


def typed(config: RunConfig) -> RunConfig:
    """The config with the numbers of its method nodes in one spelling: where a float may stand, a whole number is one,
    unless the group's files spell that knob without a point (which is in the hashes of runs).
    """
    groups = [group for group in MODULES if group not in ("grader", "problems")]
    return replace(config, **{group: _typed(group, getattr(config, group)) for group in groups})


def _typed(group: str, node: Node) -> Node:
    result = {}
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            result[key] = _typed(group, value)
        elif key in ("_target_", "_partial_"):
            result[key] = value
        else:
            result[key] = _spelled(group, node["_target_"], key, value)
    return result


def _spelled(group: str, target: str, key: str, value: Any) -> Any:
    if (target, key) in _without_point(group):
        return _mapped(value, lambda number: int(number) if number == int(number) else number)
    floats = _mapped(value, float)
    try:
        return _knob(group, target, key, floats)
    except ValidationError:  # only whole numbers may stand there
        return value


def _mapped(value: Any, spell: Callable[[float], float]) -> Any:
    if isinstance(value, list):
        return [_mapped(each, spell) for each in value]
    return spell(value) if type(value) in (int, float) else value


@cache
def _without_point(group: str) -> frozenset[tuple[str, str]]:
    """(function, knob) whose value in a file of the group is a whole number without a point."""
    nodes = [yaml.safe_load(file.read_text()) for file in (CONF / group).glob("*.yaml")]
    return frozenset(
        (node["_target_"], key)
        for node in nodes
        if "_target_" in node
        for key, value in node.items()
        if type(value) is int
    )


def _knob(group: str, target: str, key: str, value: Any) -> Any:
    """A knob's value in its type; raises pydantic's `ValidationError`."""
    common = COMMON_KNOBS.get(group, {})
    kind = common[key] if key in common else signatures.kind(target, key)
    return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)


def selected(config: RunConfig) -> RunConfig:
    """The config with only the benchmark sources, model recipes and engine settings that it uses, so that its hash is
    of what it does.

    Raises:
        UserError: for a benchmark without a source, an `sft:` model without a recipe, or settings of another engine.
    """
    evaluate = config.evaluate
    for name in evaluate.benchmarks:
        if name not in evaluate.sources:
            raise UserError(
                f"evaluate.benchmarks: {name!r} has no entry in evaluate.sources; "
                f"known here: {', '.join(sorted(evaluate.sources)) or 'none'}"
            )
    recipes = {}
    for key, model in [
        ("student.model", config.student.model),
        *(("teacher.models", m) for m in config.teacher.models),
        *([("shaping.anchor", config.shaping.anchor)] if uses_anchor(config) else []),
    ]:
        if model.startswith("sft:"):
            name = model.removeprefix("sft:")
            if name not in config.recipes:
                known = ", ".join(sorted(config.recipes)) or "none"
                raise UserError(f"{key}: {model!r} names no recipe; recipes of scale={config.scale.name}: {known}")
            recipes[name] = config.recipes[name]
    sources = {name: evaluate.sources[name] for name in evaluate.benchmarks}
    teacher = with_own_settings(config.teacher)
    return replace(config, evaluate=replace(evaluate, sources=sources), recipes=recipes, teacher=teacher)


def nodes(config: RunConfig, group: str) -> dict[str, Node]:
    """The nodes of a group, by their keys: one, or one for each source of problems."""
    if group not in ("grader", "problems"):
        return {group: getattr(config, group)}
    source = config.prompts.source
    sources = {f"evaluate.sources.{name}": each for name, each in config.evaluate.sources.items()}
    if isinstance(source, DataMixture):
        sources |= {f"prompts.source.sources.{name}": each for name, each in source.sources.items()}
    else:
        sources |= {"prompts.source": source}
    if group == "problems":
        return {f"{key}.function": each.function for key, each in sources.items() if isinstance(each, Called)}
    return {f"{key}.grader": load_choice("grader", each.grader, f"{key}.grader") for key, each in sources.items()}


def load_choice(group: str, choice: str | Node, key: str) -> Node:
    """The node of a choice: itself, or the file of the group that has its name.

    Raises:
        UserError: where no file has it.
    """
    if isinstance(choice, dict):
        return choice
    files = plugins.files(group)
    if choice not in files:
        raise UserError(f"{key}={choice}: there is no such {group}; the choices are {', '.join(sorted(files))}")
    return yaml.safe_load(files[choice].read_text())


def resolve(group: str, target: str) -> Callable[..., Any]:
    """The function that a node of `group` names: one of the group's modules that a file of the group names too."""
    _refuse_target(group, target, group)
    return signatures.imported(target)


def _refuse_target(group: str, target: str, at: str) -> None:
    allowed = targets(group)
    if plugins.contains(target):
        if not signatures.exists(target):
            raise UserError(f"{at}._target_={target}: the plug-in has no such function")
    elif target not in allowed:
        names = ", ".join(sorted(name.rpartition(".")[2] for name in allowed)) or "none"
        modules = " and ".join(MODULES[group]) or "plug-ins"
        raise UserError(f"{at}._target_={target!r}: only functions of {modules} may stand here: {names}")


@cache
def targets(group: str) -> frozenset[str]:
    """The `_target_`s that the files of a config group name, all of its modules."""
    named = {
        name
        for file in (CONF / group).glob("*.yaml")
        for name in re.findall(r"^_target_: (\S+)$", file.read_text(), re.M)
    }
    return frozenset(name for name in named if name.rpartition(".")[0] in MODULES[group])


def check_node(group: str, node: Node, at: str | None = None) -> None:
    """Checks a node's knobs against the keyword-only parameters of its function: names, types and ranges. `at` is the
    node's key, where that is not the group.

    Raises:
        UserError: naming the knob, its value and what would be right.
    """
    at = at or group
    if "_target_" not in node:
        raise UserError(f"{at}: has no _target_; choose one with {at}=NAME")
    target = node["_target_"]
    _refuse_target(group, target, at)
    name, common = target.rpartition(".")[2], COMMON_KNOBS.get(group, {})
    parameters = [*common, *(knob for knob in signatures.knobs(target) if knob not in BUILT_BY_THE_RUN.get(group, ()))]
    knobs = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    for key, value in knobs.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            has = f"its knobs are {', '.join(parameters)}" if parameters else "it has no knobs"
            raise UserError(
                f"{at}.{key}: {name} has no such knob; " + (f"did you mean {at}.{near[0]}?" if near else has)
            )
        if isinstance(value, Mapping) and "_target_" in value:
            check_node(group, dict(value))
            continue
        try:
            _knob(group, target, key, value)
        except ValidationError as error:
            right = error.errors(include_url=False)[0]["msg"].replace("Input should be", "should be", 1)
            raise UserError(f"{at}.{key}={value!r}: {right[0].lower()}{right[1:]} for {at}={name}") from None
    for key in [key for key in parameters if key not in knobs]:
        raise UserError(f"{at}.{key}: is missing; {name} needs it")


# Keyword-only parameters that the run itself fills in, not the config.
BUILT_BY_THE_RUN = {
    "rollout": frozenset({"root", "stop_ids", "pad_id"}),
    "responses": frozenset({"sampler"}),
    "grader": frozenset({"timeout"}),
}

# Knobs of a group that the run itself reads, whatever the function: sampling parameters do not depend on the engine,
# nor does it depend on the filter which tokens are eligible at all.
COMMON_KNOBS: dict[str, dict[str, Any]] = {
    "rollout": {"temperature": Positive, "top_p": Probability, "top_k": Annotated[int, Field(ge=0)]},
    "filter": {"exclude_special": bool, "exclude_ids": list[int], "prefix_length": Annotated[int | None, Field(ge=1)]},
}


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain mappings, lists and scalars: what is hashed and written."""
    return asdict(config)
