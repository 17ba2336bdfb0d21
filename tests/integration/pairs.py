"""Pairs of choices: their settings, what is said of them beforehand, and a world that runs a step of them."""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from opd import cli
from opd.check import config as check
from opd.config.hints import known_keys
from opd.config.schema import CONF
from opd.data import control
from opd.errors import UserError
from opd.grading.grading import Grade
from opd.model.load import load_config
from opd.model.texts import Texts
from opd.records.run_dir import RunDir
from opd.rollout import sampler as rollout_engine
from opd.rollout.sampler import TransformersSampler
from opd.step import assemble, loop, startup_checks
from opd.step.loop import step
from opd.teacher import load as teachers
from tests.unit.small import ALONE

Settings = dict[str, str]

# The method groups, and what a pair says nothing of: nothing that hides a scale or does not act.
START = {
    "divergence": "reverse_kl",
    "support": "sampled",
    "ensemble": "single",
    "filter": "none",
    "rollout_correction": "none",
    "teacher": "single",
    "loss": "token_mean",
    "shaping": "none",
}
BASE = {"whitening": "none", "rollout.dtype": "bfloat16"}


def files(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base")


KNOBS = [
    *("whitening=sample", "whitening=group", "whitening=batch"),
    *("gamma=0.5", "gamma=1.0", "credit=sequence"),
    *("filter.score=signed_k1", "filter.score=exact_kl", "filter.scope=sequence", "filter.scope=group"),
    *("filter.denominator=kept", "filter.prefix_length=3", "filter.exclude_ids=[6,8,10,12,14,16,18,20]"),
    "ensemble.normalize=true",
    *("support.tail=bucket", "support.tail=sampled", "support.tail=drop", "support.of=student", "support.of=union"),
    *("rollout_correction.level=sequence", "rollout_correction.level=geometric"),
    *("shaping.log_ratio_clamp=0.3", "shaping.baseline=group", "shaping.baseline=batch", "shaping.advantage_clip=0.4"),
    *("mini_batch_size=2", "signal.entropy=0.1"),
]
CHOICES = [f"{group}={name}" for group in START for name in files(group) if name != START[group]] + KNOBS

SEVERAL = "|".join(name for name in files("ensemble") if name != "single")
DOMAINS = "ensemble.domain={addition:1,subtraction:0,multiplication:0,chain:1}"
NARROW = "rollout_correction.low=0.995 rollout_correction.high=1.005"
# What comes with a choice, where its partner in the pair does not say otherwise: what it cannot be without, and what
# makes it act in a world this small.
WITH = {
    **{f"ensemble={name}": "teacher=ladder" for name in SEVERAL.split("|")},
    "ensemble=by_domain": f"teacher=ladder {DOMAINS}",
    "teacher=ladder": "ensemble=geometric",
    "divergence=split": "filter=partition",
    "filter=partition": "divergence=split",
    "support=topk": "support.k=4",
    **{f"rollout_correction={name}": NARROW for name in ("mis", "tis", "icepop")},
    "shaping=near_start": "shaping.anchor=ANCHOR",
    "shaping=extrapolated": "shaping.anchor=ANCHOR shaping.extrapolation=3.0",
    "credit=sequence": "gamma=1.0",
    "mini_batch_size=2": "clip.low=0.2 clip.high=0.2",
    **{
        knob: "filter=kl filter.p_min=30 filter.p_max=70"
        for knob in KNOBS
        if knob.startswith(("filter.sc", "filter.den"))
    },
    **{knob: "support=topk support.k=4" for knob in KNOBS if knob.startswith("support.")},
    **{knob: f"rollout_correction=tis {NARROW}" for knob in KNOBS if knob.startswith("rollout_correction.")},
    "ensemble.normalize=true": "ensemble=geometric teacher=ladder support=full",
}

EXACT = {"support": "full|topk"}
# Every refusal that a pair meets: what its settings match, and what the sentence says.
REFUSED: list[tuple[dict[str, str], str]] = [
    (EXACT | {"whitening": "sample|group|batch"}, "support and whitening: "),
    ({"credit": "sequence", "gamma": "0.5"}, "credit and gamma: "),
    ({"credit": "sequence", "whitening": "sample"}, "credit and whitening: "),
    ({"shaping": "reward_augmented", "whitening": "sample"}, "signal and whitening: "),
    ({"shaping.log_ratio_clamp": ".+", "divergence": "total_variation"}, "shaping.log_ratio_clamp and divergence: "),
    (EXACT | {"gamma": "0.5|1.0"}, "support and gamma: "),
    (EXACT | {"shaping": "extrapolated"}, "support and shaping.extrapolation: "),
    (EXACT | {"shaping": "prefix_weighted"}, "support and shaping.prefix_strength: "),
    (EXACT | {"shaping.baseline": "group|batch"}, "support and shaping.baseline: "),
    (EXACT | {"shaping.advantage_clip": ".+"}, "support and shaping.advantage_clip: "),
    (EXACT | {"divergence": "k2_naive|k3_naive|value_weighted"}, "divergence and support: "),
    ({"support": "full", "support.(tail|of)": ".+"}, "full has no such knob"),
    ({"gamma": "0.5|1.0", "divergence": "(?!reverse_kl$).+"}, "gamma and divergence: "),
    ({"whitening": "sample|group", "shaping.baseline": "group"}, "shaping.baseline and whitening: "),
    ({"whitening": "sample|group|batch", "shaping.baseline": "batch"}, "shaping.baseline and whitening: "),
    ({"ensemble": "single", "teacher": "ladder"}, "single takes exactly 1 teacher, not 2"),
    ({"ensemble": SEVERAL, "teacher": "single|self"}, "takes at least 2 teachers, not 1"),
    ({"ensemble": "(?!geometric$).+", "ensemble.normalize": "true"}, "has no such knob"),
    ({"support": "sampled", "ensemble.normalize": "true"}, "ensemble.normalize and support: "),
    ({"divergence": "split", "filter": "(?!partition$).+"}, "set filter=partition too"),
    ({"divergence": "(?!split$).+", "filter": "partition"}, "set divergence=split too"),
    ({"filter": "partition", "filter.denominator": ".+"}, "partition has no such knob"),
]
# A student that is its own teacher has a gradient of exactly zero, unless one of these teaches it something else.
BESIDE_THE_TEACHER = ({"shaping": "near_start|extrapolated|reward_augmented"}, {"signal.entropy": ".+"})
# Pairs in which one of the two does nothing, and why that is so here and need not be elsewhere.
IDENTITIES = {
    ("ensemble=advantage_mean", "teacher=ladder"): "for reverse KL this is the geometric mean that the ladder has here",
    ("shaping.log_ratio_clamp=0.3", "shaping.advantage_clip=0.4"): "for reverse KL both hold one number, so the "
    "narrower hides the other",
}


def words(text: str) -> Settings:
    return dict(word.split("=", 1) for word in text.split())


def settings(*choices: str) -> Settings:
    """What the choices say, then what comes with them, the last one's first."""
    found: Settings = {}
    for more in (*choices, *(WITH.get(choice, "") for choice in reversed(choices))):
        found = words(more) | found
    if found.get("support", "sampled") != "sampled":
        found = {key: value for key, value in found.items() if not key.startswith("clip.")}
    return START | BASE | found


def matches(given: Settings, pattern: dict[str, str]) -> bool:
    return all(
        any(re.fullmatch(key, name) and re.fullmatch(value, given[name]) for name in given)
        for key, value in pattern.items()
    )


class World:
    """Steps of runs whose composition, models, prompts and rollouts are made once."""

    def __init__(self, small_run: list[str], models: Path, monkeypatch: pytest.MonkeyPatch):
        self.anchor = models / "large"
        small, medium = models / "small", models / "medium"
        overrides = [*small_run, f"scale.teacher={small}", f"scale.ladder=[{medium},{small}]"]
        overrides += [
            "seed=2",
            "batch_size=4",
            "samples_per_prompt=2",
            "max_response_length=8",
            "evaluate.benchmarks=[]",
        ]
        self.overrides = [*overrides, *(f"{key}={value}" for key, value in BASE.items())]
        cli.register_resolvers()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.start = compose("config", overrides=self.overrides)
        self.nodes = {f"{group}={name}": self._node(group, name) for group in START for name in files(group)}
        self.plain = OmegaConf.to_container(self.start, resolve=True)
        self.found: dict[str, Any] = {}
        self._keep(monkeypatch)

    def _node(self, group: str, name: str) -> dict[str, Any]:
        """What a choice sets, by the sections that it sets it in: its group's, or others too."""
        node = OmegaConf.create({})
        raw = OmegaConf.load(file := CONF / group / f"{name}.yaml")
        for base in raw.pop("defaults", []):
            node = OmegaConf.merge(node, OmegaConf.load(CONF / group / f"{base.partition('@')[0]}.yaml"))
        everywhere = file.read_text().startswith("# @package _global_")
        found = OmegaConf.merge({group: node}, raw if everywhere else {group: raw})
        whole = copy.copy(self.start)
        for section, values in found.items():
            whole[section] = values if section == group else OmegaConf.merge(self.start[section], values)
        resolved = OmegaConf.to_container(whole, resolve=True)
        return {section: resolved[section] for section in found}

    def _keep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: dict[Any, Any] = {}
        load_model, sample = assemble.load_model, TransformersSampler.sample

        def model(path: str, **given: Any) -> Any:
            key = path, *given.items()
            if key not in loaded:
                one = load_model(path, **given)
                loaded[key] = one, copy.deepcopy(one.state_dict())
            one, start = loaded[key]
            one.load_state_dict(start)
            return one

        def rollout(self: Any, prompts: Any, *given: Any, key: Any) -> Any:
            at = (*(prompt.token_ids for prompt in prompts), *given, key)
            if at not in loaded:
                loaded[at] = sample(self, prompts, *given, key=key)
            return loaded[at]

        for module in (assemble, teachers):
            monkeypatch.setattr(module, "load_model", model)
        monkeypatch.setattr(rollout_engine, "replicate", self._once(rollout_engine.replicate))
        monkeypatch.setattr(control, "encode", cache(control.encode))
        monkeypatch.setattr(assemble, "load_prompts", self._once(assemble.load_prompts))
        # The models' vocabularies are one, whichever of them is the student.
        configs = partial(startup_checks.model_configs, load=cache(load_config))
        texts = self._once(
            lambda config: Texts(assemble.load_student_tokenizer(config), configs(config)[1].size, frozenset())
        )
        monkeypatch.setattr(startup_checks, "check", lambda config, *_: (texts(config), configs(config)[0]))
        monkeypatch.setattr(TransformersSampler, "sample", rollout)
        self.grade([False, False, True, False])
        monkeypatch.setattr(
            loop,
            "grade_rollout",
            lambda rollout, *_, **__: [Grade(next(self.grades), "", "equal") for _ in rollout.group],
        )

    def grade(self, correct: list[bool]) -> None:
        self.grades: Iterator[bool] = itertools.cycle(correct)

    @staticmethod
    def _once(function: Callable[..., Any]) -> Callable[..., Any]:
        found: list[Any] = []

        def first(*given: Any, **more: Any) -> Any:
            if not found:
                found.append(function(*given, **more))
            return found[0]

        return first

    def config(self, given: Settings) -> Any:
        """The checked config of these settings."""
        plain = copy.deepcopy(self.plain)
        for key, value in sorted(given.items(), key=lambda item: "." in item[0]):
            if key in START:
                plain |= copy.deepcopy(self.nodes[f"{key}={value}"])
                continue
            *above, last = key.split(".")
            node = plain
            for name in above:
                node = node[name]
            node[last] = _value(value.replace("ANCHOR", str(self.anchor)))
        if "mini_batch_size" not in given:
            plain["mini_batch_size"] = plain["batch_size"]
        return check.prepare(plain)

    def step(self, *choices: str) -> tuple[Any, tuple[float, float] | str]:
        """The config of these choices, and the loss and gradient norm of its step, or what refuses it."""
        config = None
        try:
            config = self.config(settings(*choices))
            metrics = step(assemble.assemble(config, RunDir(Path()), ALONE), 2)
        except UserError as error:
            return config, str(error)
        return config, (metrics["loss"], metrics["grad_norm"])

    def alone(self, choice: str) -> tuple[Any, tuple[float, float] | str]:
        """What `step` gives of one choice by itself."""
        if choice not in self.found:
            self.found[choice] = self.step(choice)
        return self.found[choice]

    def complaint(self, *pair: str) -> str | None:
        """What is wrong with the step of a pair; None where it learns, or is refused, as it should."""
        given = settings(*pair)
        config, result = self.step(*pair)
        expected = [says for pattern, says in REFUSED if matches(given, pattern)]
        if isinstance(result, str):
            if not is_clear(result):
                return f"is refused unclearly: {result}"
            return None if any(says in result for says in expected) else f"is refused: {result}"
        loss, norm = result
        if expected:
            return f"runs, but should be refused with {expected}"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"has the loss {loss} and a gradient of {norm}"
        if given["teacher"] == "self" and not any(matches(given, pattern) for pattern in BESIDE_THE_TEACHER):
            return None if result == (0, 0) else f"learns from itself: loss {loss}, gradient {norm}"
        if norm == 0:
            return "learns nothing"
        for one, other in (pair, pair[::-1]):
            same, before = self.alone(one)
            if pair not in IDENTITIES and config != same and _close(result, before):
                return f"ignores {other}: loss and gradient are those of {one} alone"
        return None


def _close(one: tuple[float, float], other: tuple[float, float] | str) -> bool:
    return not isinstance(other, str) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True))


def is_clear(sentence: str) -> bool:
    """Whether it is one sentence that names two keys, or a knob by its full name."""
    keys = {key for key in (*known_keys(), *START) if re.search(rf"\b{re.escape(key)}s?\b", sentence)}
    return "\n" not in sentence and len(sentence) < 400 and (len(keys) > 1 or bool(re.search(r"\w\.\w", sentence)))


@contextmanager
def opened(small_run: list[str], models: Path) -> Iterator[World]:
    """A world for the tests of a file, without type checks: every function here is run with them elsewhere."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            yield World(small_run, models, monkeypatch)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@cache
def _value(text: str) -> Any:
    return OverridesParser.create().parse_override(f"key={text}").value()
