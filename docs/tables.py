"""`python -m docs.tables` writes methods.md and refusals.md from the config, the functions' docstrings and RULES."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from opd.check import config as check
from opd.check.objective_rules import BIASED
from opd.check.refusals import RULES
from opd.config.schema import CONF, Clip, Shaping
from opd.objective import advantage, divergence, loss, shaping
from opd.objective.filter import eligible
from opd.step import terms
from opd.step.terms import Term

DOCS = Path(__file__).parent
GROUPS = ("divergence", "support", "ensemble", "filter", "rollout_correction", "loss")

# A docstring names its source by one of these.
SOURCES = {
    "Adventures": "[On-Policy Distillation Adventures](https://andrewzh112.github.io/opd_adventures)",
    "nanochat walkthrough": "[On-policy distillation in nanochat](https://github.com/himsahni/nanochat)",
    "revisiting OPD": "[Revisiting OPD](https://arxiv.org/abs/2603.25562)",
    "GKD": "[Generalized knowledge distillation](https://arxiv.org/abs/2306.13649)",
    "DistiLLM": "[DistiLLM](https://arxiv.org/abs/2402.03898)",
    "G-OPD": "[G-OPD](https://github.com/RUCBM/G-OPD)",
    "IW-OPD": "TRL's trainer of that name",
    "Ling Team 2025": "IcePop",
    "PPO": "[Proximal policy optimization](https://arxiv.org/abs/1707.06347)",
    "Amari": "his α-divergences",
}
OTHER_NAMES = {"seed-000": "nanochat walkthrough", "seed-003": "revisiting OPD", "Revisiting OPD": "revisiting OPD"}
NAMED = "|".join([*OTHER_NAMES, *SOURCES])
SOURCE = re.compile(rf"(?:{NAMED})\b(?:,? (?:section|Eq\.|Table|idea) \d+)*")
# Where nothing but the source is said, the column of its own says it.
ASIDE = re.compile(rf" \((?:{SOURCE.pattern})\)|(?<=[.:]) (?:{SOURCE.pattern})(?:, {SOURCE.pattern})*\.(?= |$)")

TERMS = {name: found for name, found in vars(terms).items() if isinstance(found, Term)}

# Knobs of a run that no group's function has: what does it, and the default run's value.
KNOBS: dict[str, tuple[Callable[..., Any], Any]] = {
    "gamma": (advantage.discounted_return, 0.0),
    "credit": (shaping.sequence_return, "reward_to_go"),
    "whitening": (advantage.whiten, "batch"),
    **{f"signal.{name}": (term.function, float(name == "divergence")) for name, term in TERMS.items()},
    "clip.low, clip.high": (loss.clipped_policy_gradient, None),
    "shaping.log_ratio_clamp": (divergence.Divergence.clamped, None),
    "shaping.baseline": (shaping.subtract_baseline, "none"),
    "shaping.advantage_clip": (shaping.clip, None),
    "shaping.prefix_strength": (shaping.prefix_weight, 0.0),
    "shaping.extrapolation": (shaping.extrapolate, 1.0),
    "shaping.pass_rate_power": (shaping.pass_rate_weight, 0.0),
    "filter.exclude_special, filter.exclude_ids, filter.prefix_length": (eligible, False),
}
# These say of another knob what it is done with.
PARTS_OF_KNOBS = {"shaping.anchor", "shaping.reward_baseline"}

INTRODUCTION = """\
# Methods

Made by `make docs` from the config files, the docstrings of `opd/objective` and `conf/experiment`.

u = log r = log π_student − log π_reference of the sampled token. A divergence's formula is its generator f; its weight
is the advantage of the policy gradient. Any choice of one table goes with any of another, but for
[what is refused](refusals.md).
"""

BIASED_FORMS = """\
## Biased on purpose

These weights are the gradient of nothing. They are here to reproduce what was published with them, run with
`support=sampled` only, and are no method to choose.
"""

REFUSALS_INTRODUCTION = """\
# What is refused

Made by `make docs` from `opd/check/refusals.py`. A run that cannot learn, or that would ignore one of its own knobs, is
refused before a model is loaded: one sentence with the keys, the reason and what would be right, and exit status 2.
"""

REFUSALS_REST = """\
## Before that: what a key may hold

- A key that the schema does not have is refused, with the nearest one that it has. So is a value of another type
  (`gamma=high`), out of range (`gamma=2`), or missing.
- A method takes the knobs of its own function and no other: `divergence.alpha` is refused with `divergence=hellinger`,
  and so is a knob left out, of another type or out of range.
- `_target_` may name only the functions that the files of its group name. Nothing else is imported or called, whatever
  a config says.
- An ensemble is given as many teachers as it can use: `ensemble=single` one, the others at least two, and `weights` and
  `boundaries` as many as go with them.
- A choice, experiment or benchmark that does not exist is refused with those that do.

## After that: what only the models and prompts can tell

Before the first step a run is also refused where

- a teacher's or anchor's vocabulary is not the student's, token for token: the same width is not enough;
- a checkpoint lacks weights that its config asks for, or has others;
- a teacher has fewer positions than the longest prompt and its response have tokens;
- a prompt ends with an end-of-text token that its tokenizer or chat template has added (a tokenizer that changes
  texts, so that its tokens stand for others, is said);
- the chat template refuses the turns, or takes more than five seconds for a conversation;
- a teacher's server cannot be reached, serves another model, takes shorter sequences than the run has, or returns
  numbers that are not log-probs of its model;
- a model is missing or damaged, or changes its logits after the output head in a way that is not known here;
- the tokenizer has no end-of-text token, or cannot tell the control tokens of two teachers apart;
- the longest prompt and `max_response_length` together are more than the student's positions (a prompt longer than
  `prompts.max_prompt_length` is left out, and said);
- a problem set is missing or empty, or one of its lines is damaged;
- `batch_size` is more than there are prompts, `num_steps` more than the epochs give, or `optim.warmup_steps` not fewer
  than the steps;
- `filter.exclude_ids` names no token of the student;
- `student.lora.target_modules` names no layer, or one that is not a linear layer below the output head;
- `compute.offload` on ranks that compute on the CPU, `compute.compile` where torch finds no compiler, or
  `compute.activation_checkpointing` or `compute.compile` of a model without a list of layers;
- the run directory contains a run of another config, or another process is writing to it; or the run that it
  contains began with other weights, tokenizer or problems under the same names.

While it runs, a loss, gradient, logit or log-probability that is not a finite number ends it; the student and its
checkpoints stay as they were before that update. So does a teacher's server that does not answer within
`teacher.server.patience`; the same command then resumes from the last checkpoint.

## What cannot be written at all

No config back-propagates a divergence of the sampled token alone, and none takes a divergence summed over the
vocabulary as a policy-gradient weight: `support=sampled` always takes the slope as a weight, and `support=full` and
`topk` always differentiate the sum itself. The first matters because the expected gradient of the k1 estimate is zero,
and that of k3 is forward KL's, not reverse KL's; the second because a sum over the vocabulary is the same whichever
token was drawn, so that its expected policy gradient is zero too. Either runs without an error and logs a loss, and
peers offer both.
"""


def main() -> None:
    """Writes both pages beside this file."""
    (DOCS / "methods.md").write_text(methods())
    (DOCS / "refusals.md").write_text(refusals())


def methods() -> str:
    """The page of methods."""
    parts = [INTRODUCTION]
    for group in GROUPS:
        rows = [
            (f"`{group}={choice}`", *formula_and_source(function, choice, knobs), users(group, choice))
            for choice, function, knobs in choices(group)
        ]
        parts.append(f"## {group}\n\n" + table(("method", "formula or contract", "source", "experiments"), rows))
    rows = [
        (
            ", ".join(f"`{key}`" for key in keys.split(", ")),
            *formula_and_source(function),
            setters(keys.split(", "), default),
        )
        for keys, (function, default) in KNOBS.items()
    ]
    parts.append(
        "## Credit, shaping and what is learned\n\n"
        + table(("knob", "formula or contract", "source", "experiments"), rows)
    )
    found = {function.__name__: (choice, function) for choice, function, _ in choices("divergence")}
    biased = [f"- `divergence={found[name][0]}`: {formula_and_source(found[name][1])[0]}" for name in BIASED]
    parts.append(BIASED_FORMS + "\n" + "\n".join(biased) + "\n")
    parts.append("## Sources\n\n" + "\n".join(f"- {name}: {title}" for name, title in SOURCES.items()) + "\n")
    return "\n".join(parts)


def refusals() -> str:
    """The page of refusals."""
    keys_of: dict[str, list[str]] = {}
    for refusal in RULES:
        keys_of.setdefault(refusal.reason, []).append(" with ".join(f"`{key}`" for key in refusal.keys))
    rows = [(", ".join(keys), reason) for reason, keys in keys_of.items()]
    return "\n".join([REFUSALS_INTRODUCTION, table(("keys", "why"), rows), REFUSALS_REST])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def choices(group: str) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """The files of a method group, in order of name: (choice, its function, its knobs)."""
    for file in sorted((CONF / group).glob("*.yaml")):
        node = yaml.safe_load(file.read_text())
        if file.stem != "base":
            knobs = {key: value for key, value in node.items() if key not in ("defaults", "_target_", "_partial_")}
            yield file.stem, check.resolve(group, node["_target_"]), knobs


def formula_and_source(
    function: Callable[..., Any], choice: str = "", knobs: dict[str, Any] | None = None
) -> tuple[str, str]:
    """Of a function's docstring the first paragraph without its source, and its source.

    Where the docstring lists values of a knob, one a line, the line of `choice` ends the paragraph; where several
    choices are one function, the knob that tells them apart is added.
    """
    text = inspect.getdoc(function) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    if choice and (listed := re.search(rf"^{choice}  +(.*(?:\n {{4,}}.*)*)", text, re.M)):
        paragraph = paragraph.rstrip(".") + ": " + " ".join(listed[1].split())
    source = ", ".join(dict.fromkeys(found[0] for found in SOURCE.finditer(paragraph))) or "—"
    formula = ASIDE.sub("", paragraph)
    if knobs and "score" in knobs:
        formula += f" `score: {knobs['score']}`."
    for old, new in OTHER_NAMES.items():
        formula, source = formula.replace(old, new), source.replace(old, new)
    return formula, source


def experiments() -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """Each experiment's choices of groups, and the values that it and its shaping set, by dotted key."""
    found = {}
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        node = yaml.safe_load(file.read_text())
        chosen = {
            key.removeprefix("override /"): choice
            for entry in node.pop("defaults", [])
            for key, choice in entry.items()
        }
        values = {}
        if "shaping" in chosen:
            values = flat({"shaping": yaml.safe_load((CONF / "shaping" / f"{chosen['shaping']}.yaml").read_text())})
        found[file.stem] = chosen, values | flat(node)
    return found


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys."""
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def users(group: str, choice: str) -> str:
    """The experiments that choose `choice`, or name its function as a knob of another."""
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    if {group: choice} in defaults:
        return "all that choose no other"
    target = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())["_target_"]
    return names(
        name
        for name, (chosen, values) in experiments().items()
        if chosen.get(group) == choice
        or any(key.startswith(f"{group}.") and value == target for key, value in values.items())
    )


def setters(keys: list[str], default: Any) -> str:
    """The experiments that set one of `keys` to something else than the default run's value."""
    found = experiments().items()
    return names(name for name, (_, values) in found if any(values.get(key, default) != default for key in keys))


def names(found: Iterator[str]) -> str:
    """A cell with the names of experiments."""
    return ", ".join(f"`{name}`" for name in found) or "—"


def missing_knobs() -> set[str]:
    """Knobs of the schema's shaping and clip that the page says nothing of."""
    said = {key for keys in KNOBS for key in keys.split(", ")} | PARTS_OF_KNOBS
    wanted = {f"{name}.{field.name}" for name, kind in (("shaping", Shaping), ("clip", Clip)) for field in fields(kind)}
    return wanted - said


if __name__ == "__main__":
    main()
