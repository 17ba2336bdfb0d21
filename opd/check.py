"""What may not start: method nodes whose knobs do not fit, and combinations that cannot learn or would ignore a knob.

Nothing here imports torch by itself; `check` does, through the modules that the config names.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from opd.config import Node, Positive, Probability, RunConfig, parse
from opd.errors import UserError

# A config may name only functions of its group's module: no other `_target_` is ever imported or called.
MODULES = {
    "divergence": "opd.objective.divergence",
    "ensemble": "opd.objective.ensemble",
    "filter": "opd.objective.filter",
    "rollout_correction": "opd.objective.rollout_correction",
    "loss": "opd.objective.loss",
    "rollout": "opd.engine.rollout",
}


@dataclass(frozen=True)
class Refusal:
    """A rule over the whole config: its keys, why it refuses, and when (`when` returns what would be right)."""

    keys: tuple[str, ...]
    reason: str
    when: Callable[[RunConfig], str | None]


def prepare(composed: Mapping[str, Any]) -> RunConfig:
    """A composed config, parsed, reduced to what it uses, and checked.

    Raises:
        UserError: for the first thing wrong with it.
    """
    config = selected(parse(composed))
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Refuses what cannot run.

    Raises:
        UserError: the first refusal, with the keys, the reason and what would be right.
    """
    for group in MODULES:
        check_node(group, getattr(config, group))
    knobs = {key: value for key, value in config.ensemble.items() if not key.startswith("_")}
    resolve("ensemble", config.ensemble["_target_"]).accepts(len(config.teacher.models), **knobs)  # pyright: ignore[reportFunctionMemberAccess]
    for refusal in REFUSALS:
        if remedy := refusal.when(config):
            raise UserError(f"{' and '.join(refusal.keys)}: {refusal.reason}; {remedy}")


def selected(config: RunConfig) -> RunConfig:
    """The config with only the benchmark sources and model recipes that it uses, so that its hash is of what it does.

    Raises:
        UserError: for a benchmark without a source, or an `sft:` model without a recipe.
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
    ]:
        if model.startswith("sft:"):
            name = model.removeprefix("sft:")
            if name not in config.recipes:
                known = ", ".join(sorted(config.recipes)) or "none"
                raise UserError(f"{key}: {model!r} names no recipe; recipes of scale={config.scale.name}: {known}")
            recipes[name] = config.recipes[name]
    sources = {name: evaluate.sources[name] for name in evaluate.benchmarks}
    return replace(config, evaluate=replace(evaluate, sources=sources), recipes=recipes)


def resolve(group: str, target: str) -> Callable[..., Any]:
    """The function that a node of `group` names; only public names of the group's own module are found."""
    module_name = MODULES[group]
    if not isinstance(target, str) or target.rpartition(".")[0] != module_name:
        raise UserError(f"{group}._target_={target!r}: only functions of {module_name} may stand here")
    module, name = importlib.import_module(module_name), target.rpartition(".")[2]
    function = getattr(module, name, None)
    if name.startswith("_") or not callable(function) or getattr(function, "__module__", None) != module_name:
        raise UserError(f"{group}._target_={target!r}: {module_name} has no such function")
    return function


def check_node(group: str, node: Node) -> None:
    """Holds a node's knobs against the keyword-only parameters of its function: names, types and ranges.

    Raises:
        UserError: naming the knob, its value and what would be right.
    """
    if "_target_" not in node:
        raise UserError(f"{group}: has no _target_; choose one with {group}=NAME")
    function = resolve(group, node["_target_"])
    name = function.__name__
    parameters = COMMON_KNOBS.get(group, {}) | {
        key: parameter.annotation
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in BUILT_BY_THE_RUN
    }
    knobs = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    for key, value in knobs.items():
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            has = f"its knobs are {', '.join(parameters)}" if parameters else "it has no knobs"
            raise UserError(
                f"{group}.{key}: {name} has no such knob; " + (f"did you mean {group}.{near[0]}?" if near else has)
            )
        if isinstance(value, Mapping) and "_target_" in value:
            check_node(group, dict(value))
            continue
        try:
            TypeAdapter(parameters[key], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            right = error.errors(include_url=False)[0]["msg"].replace("Input should be", "should be", 1)
            raise UserError(f"{group}.{key}={value!r}: {right[0].lower()}{right[1:]} for {group}={name}") from None
    for key in parameters.keys() - knobs.keys():
        raise UserError(f"{group}.{key}: is missing; {name} needs it")


# Keyword-only parameters that the run itself fills in, not the config.
BUILT_BY_THE_RUN = frozenset({"model", "stop_ids", "pad_id"})

# Knobs of a group that the run itself reads, whatever the function: what is sampled is no matter of the engine.
COMMON_KNOBS: dict[str, dict[str, Any]] = {
    "rollout": {"temperature": Positive, "top_p": Probability, "top_k": Annotated[int, Field(ge=0)]}
}


def _empty_percentiles(config: RunConfig) -> str | None:
    low, high = config.filter["p_min"], config.filter["p_max"]
    return None if low < high else f"filter.p_min={low} must be below filter.p_max={high}"


def _empty_ratios(config: RunConfig) -> str | None:
    low, high = config.rollout_correction["low"], config.rollout_correction["high"]
    if (low is None or low <= 1) and (high is None or high >= 1):
        return None
    return f"low={low} must be at most 1 and high={high} at least 1"


def _whole_vocabulary(config: RunConfig) -> str | None:
    return "set ensemble.normalize=false" if config.ensemble.get("normalize") else None


def _exact_score(config: RunConfig) -> str | None:
    return "set filter.score=abs_k1" if config.filter.get("score") == "exact_kl" else None


def _one_half(config: RunConfig) -> str | None:
    splits = config.divergence["_target_"] == f"{MODULES['divergence']}.split"
    marks = config.filter["_target_"] == f"{MODULES['filter']}.partition"
    if splits == marks:
        return None
    return "set filter=partition too" if splits else "set divergence=split too, or filter=kl"


def _no_prefix(config: RunConfig) -> str | None:
    if config.ensemble["_target_"] != f"{MODULES['ensemble']}.control_token":
        return None
    return "set ensemble=random to split the batch over the teachers without telling the student"


def _heuristic_return(config: RunConfig) -> str | None:
    if config.gamma == 0 or config.divergence["_target_"] == f"{MODULES['divergence']}.reverse_kl":
        return None
    return f"set gamma=0 instead of {config.gamma}, or divergence=reverse_kl"


def _greedy_answers(config: RunConfig) -> str | None:
    if config.evaluate.temperature > 0 or config.evaluate.k == 1:
        return None
    return f"set evaluate.k=1 instead of {config.evaluate.k}, or a temperature above 0"


def _truncated_greedy(config: RunConfig) -> str | None:
    truncates = config.evaluate.top_p < 1 or config.evaluate.top_k > 0
    return (
        "set top_p=1 and top_k=0, or a temperature above 0" if config.evaluate.temperature == 0 and truncates else None
    )


def _nothing_to_keep(config: RunConfig) -> str | None:
    if config.checkpoint.every or config.checkpoint.keep == 1:
        return None
    return "set checkpoint.every above 0, or checkpoint.keep=1"


def _no_warm_up(config: RunConfig) -> str | None:
    if config.num_steps is None or config.optim.warmup_steps < config.num_steps:
        return None
    return f"warmup_steps={config.optim.warmup_steps} must be below num_steps={config.num_steps}"


REFUSALS = [
    Refusal(("filter.p_min", "filter.p_max"), "the percentile range keeps nothing", _empty_percentiles),
    Refusal(
        ("rollout_correction.low", "rollout_correction.high"),
        "a student that agrees with its own rollout, ratio 1, would lie outside the range",
        _empty_ratios,
    ),
    Refusal(
        ("ensemble.normalize", "teacher.engine"),
        "the normaliser is a sum over the vocabulary, and the teachers give the sampled token alone",
        _whole_vocabulary,
    ),
    Refusal(
        ("filter.score", "teacher.engine"),
        "exact_kl is a sum over the vocabulary, and the teachers give the sampled token alone",
        _exact_score,
    ),
    Refusal(
        ("divergence", "filter"),
        "divergence=split treats apart the tokens that filter=partition marks, and one without the other does nothing",
        _one_half,
    ),
    Refusal(("ensemble", "rollout"), "the sampler cannot put a control token before a prompt yet", _no_prefix),
    Refusal(
        ("gamma", "divergence"),
        "the reward-to-go is the gradient of a sequence's divergence for reverse KL alone",
        _heuristic_return,
    ),
    Refusal(("evaluate.k", "evaluate.temperature"), "greedy answers are all alike", _greedy_answers),
    Refusal(
        ("evaluate.temperature", "evaluate.top_p", "evaluate.top_k"),
        "greedy answers ignore top_p and top_k",
        _truncated_greedy,
    ),
    Refusal(
        ("checkpoint.every", "checkpoint.keep"), "without periodic checkpoints there is one to keep", _nothing_to_keep
    ),
    Refusal(("optim.warmup_steps", "num_steps"), "the learning rate would never arrive", _no_warm_up),
]


def warnings(config: RunConfig) -> list[str]:
    """What may start but is worth a word."""
    found = []
    if config.teacher.models == ["self"] and config.entropy_coef == 0:
        found.append(
            "teacher.models=[self]: the student starts as its own teacher, so every advantage is zero and nothing is "
            "learned; name a teacher with teacher.models=[PATH]"
        )
    return found


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain mappings, lists and scalars: what is hashed and written."""
    return asdict(config)
