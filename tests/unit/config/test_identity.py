import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import sweeps.cli
from opd import cli
from opd.check import config as check, signatures
from opd.config import identity, parsing
from opd.config.identity import as_first, as_today, config_hash, override_as_today, run_id
from opd.config.recipe import Architecture, Recipe, model_path
from opd.config.schema import RunConfig
from opd.records.files import read_config
from sweeps.grid import Sweep, arms
from sweeps.ledger import Submission
from sweeps.local import LocalSettings
from sweeps.resubmit import settings_of
from sweeps.slurm import SlurmSettings

FIRST_KEYS = Path(__file__).parents[2] / "golden" / "first_keys.txt"

# What a later version could have changed: a function's place and name, keys within a section and out of it, a section
# with keys that came later still, a knob of one method, a key of every source of a kind and of every recipe.
MOVED = {"opd.objective.filter.partition": "opd.signal.kept.by_rank"}
RENAMED = {
    "entropy_coef": "signal.entropy",
    "prompts.suffix": "prompts.after",
    "evaluate.sources.*.split": "evaluate.sources.*.part",
}
LATER = {
    "signal": {"divergence": 1.0},
    "signal.likelihood": 0.0,
    "filter:partition.ties": "first",
    "evaluate.sources.*:dataset.grader": "mathematics",
    "recipes.*.init": None,
}
EARLIER = {
    "name": "a",
    "seed": 3,
    "entropy_coef": 0.1,
    "prompts": {"suffix": "!"},
    "filter": {"_target_": "opd.objective.filter.partition", "score": "kl"},
    "evaluate": {"sources": {"x": {"kind": "dataset", "split": "test"}, "y": {"kind": "arithmetic", "split": "test"}}},
    "recipes": {"r": {"steps": 2}},
}
NOW = {
    "name": "a",
    "seed": 3,
    "signal": {"divergence": 1.0, "likelihood": 0.0, "entropy": 0.1},
    "prompts": {"after": "!"},
    "filter": {"_target_": "opd.signal.kept.by_rank", "score": "kl", "ties": "first"},
    "evaluate": {
        "sources": {
            "x": {"kind": "dataset", "part": "test", "grader": "mathematics"},
            "y": {"kind": "arithmetic", "part": "test"},
        }
    },
    "recipes": {"r": {"steps": 2, "init": None}},
}


@pytest.fixture
def later(monkeypatch):
    """Of a later version, which has changed all that may change."""
    for name, table in (("MOVED", MOVED), ("RENAMED", RENAMED), ("LATER", LATER)):
        monkeypatch.setattr(identity, name, table)


def test_hash_ignores_order_and_where_a_run_is_kept_but_no_value():
    config = {
        "name": "a",
        "seed": 0,
        "study": "x",
        "paths": {"out": "/x"},
        "tracker": "none",
        "optim": {"lr": 1, "b": 2},
    }
    moved = {"optim": {"b": 2, "lr": 1}, "name": "a", "seed": 7, "study": "y", "paths": {}, "tracker": "wandb"}
    assert config_hash(config) == config_hash(moved)
    asked = [
        {**config, "teacher": {"engine": "server", "server": {"urls": [[url]]}}} for url in ("http://a", "http://b")
    ]
    assert config_hash(asked[0]) == config_hash(asked[1])
    assert config_hash(asked[0]) != config_hash({**config, "teacher": {"engine": "vllm", "server": None}})
    examined = [{**config, "evaluate": {"k": 8, **texts}} for texts in ({"texts": None}, {"texts": 0}, {})]
    assert len({config_hash(each) for each in examined}) == 1
    assert config_hash(examined[0]) != config_hash({**config, "evaluate": {"k": 9, "texts": None}})
    assert config_hash(config) != config_hash({**config, "optim": {"lr": 2, "b": 2}})
    assert config_hash(config) != config_hash({**config, "name": "b"})
    assert run_id(moved) == f"a-{config_hash(moved)[:8]}-s7"


def test_hash_is_the_same_in_every_process():
    code = "from opd.config.identity import config_hash; print(config_hash({'name': 'a', 'optim': {'lr': 1e-5}}))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {config_hash({"name": "a", "optim": {"lr": 1e-5}})}


def test_a_run_keeps_its_hash_when_what_it_names_moves_is_renamed_or_gets_keys(monkeypatch):
    before = config_hash(EARLIER)
    for name, table in (("MOVED", MOVED), ("RENAMED", RENAMED), ("LATER", LATER)):
        monkeypatch.setattr(identity, name, table)
    assert config_hash(EARLIER) == config_hash(NOW) == before
    assert as_first(NOW) == EARLIER


def test_an_earlier_config_reads_as_todays_and_todays_as_it_is(later, tmp_path):
    assert as_today(EARLIER) == NOW
    assert as_today(NOW) == NOW
    (tmp_path / "config.yaml").write_text(
        "name: a\nentropy_coef: 0.1\nfilter:\n  _target_: opd.objective.filter.partition\n"
    )
    assert read_config(tmp_path / "config.yaml") == {
        "name": "a",
        "signal": {"divergence": 1.0, "likelihood": 0.0, "entropy": 0.1},
        "filter": {"_target_": "opd.signal.kept.by_rank", "ties": "first"},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("signal.likelihood", 0.5),
        ("signal.divergence", 0.5),
        ("signal.entropy", 0.2),
        ("filter.ties", "last"),
        ("filter._target_", "opd.signal.kept.elsewhere"),
        ("evaluate.sources.x.grader", "exact"),
        ("evaluate.sources.x.part", "train"),
        ("recipes.r.init", "x"),
    ],
)
def test_every_other_value_of_what_came_later_is_another_run(later, key: str, value: Any):
    changed = as_today(NOW)
    *path, name = key.split(".")
    section = changed
    for part in path:
        section = section[part]
    assert section[name] != value
    section[name] = value
    assert config_hash(changed) != config_hash(NOW)


def test_what_is_read_and_hashed_is_left_as_it_was(later):
    earlier, now = as_first(EARLIER), as_today(NOW)
    config_hash(now), as_today(earlier)["signal"].update(divergence=2.0)
    assert (earlier, now) == (EARLIER, NOW) and LATER["signal"] == {"divergence": 1.0}


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"entropy_coef": 0.1}, {"signal": {"divergence": 1.0, "entropy": 0.1}}),
        ({"shaping": {"kl_coef": 0.2}}, {"signal": {"divergence": 1.0, "near_start": [0.2, 0.2]}, "shaping": {}}),
        ({"shaping": {"reward_weight": [1.0, 1.0]}}, {"signal": {"divergence": 1.0, "reward": 1.0}, "shaping": {}}),
        (
            {"shaping": {"reward_weight": [1.0, 0.0]}},
            {"signal": {"divergence": 1.0, "reward": [1.0, 0.0]}, "shaping": {}},
        ),
    ],
)
def test_weights_of_the_signal_are_hashed_as_the_coefficients_that_they_were(earlier: dict, now: dict):
    assert config_hash(earlier) == config_hash(now)
    assert as_first(now) == earlier and as_first(as_today(earlier)) == earlier
    assert as_today(now) == as_today(earlier)
    changed = {**now, "signal": {**now["signal"], "divergence": 0.5}}
    assert config_hash(changed) != config_hash(now)


def test_a_key_given_by_both_names_is_not_lost(later):
    both = as_today({**NOW, "entropy_coef": 0.3})
    assert {both["signal"].get("entropy"), both.get("entropy_coef")} == {0.1, 0.3}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("entropy_coef=0.1", "signal.entropy=0.1"),
        ("++entropy_coef=0.1", "++signal.entropy=0.1"),
        ("~prompts.suffix", "~prompts.after"),
        ("prompts.suffix='a=b@c'", "prompts.after='a=b@c'"),
        ("evaluate.sources.aime24.split=test", "evaluate.sources.aime24.part=test"),
        ("filter._target_=opd.objective.filter.partition", "filter._target_=opd.signal.kept.by_rank"),
        ("+benchmark@evaluate.sources.x=gsm8k", "+benchmark@evaluate.sources.x=gsm8k"),
        ("prompts.suffixes=1", "prompts.suffixes=1"),
        ("name=entropy_coef=1", "name=entropy_coef=1"),
        ("--entropy_coef=1", "--entropy_coef=1"),
        ("-m", "-m"),
        ("=", "="),
    ],
)
def test_a_command_line_of_an_earlier_version_means_the_same(later, typed: str, meant: str):
    assert override_as_today(typed) == meant
    assert override_as_today(meant) == meant


def test_a_key_that_has_another_name_now_is_told(later):
    assert parsing.no_such_key("prompts.suffix") == "prompts.suffix: there is no such key; it is now prompts.after"


def test_a_recipes_model_stays_the_same(monkeypatch, tmp_path):
    architecture = Architecture(8, 1, 1, 1, 8, 8, 64, 1e4, True, 0.1)
    recipe = Recipe(
        architecture, None, {"addition": [2]}, 0.0, [0.0, 0.0], None, "raw", 64, 2, 4, 0.1, 0, "linear", 0.1,
        [0.9, 0.9], 0.0, 1.0, 0,
    )  # fmt: skip
    before = model_path("student", recipe, tmp_path)
    monkeypatch.setattr(identity, "LATER", {"recipes.*.seed": 0})
    assert model_path("student", recipe, tmp_path) != before  # not hashed at 0, as a key that was not there at first
    monkeypatch.setattr(identity, "RENAMED", {"recipes.*.length": "recipes.*.max_length"})
    monkeypatch.setattr(identity, "LATER", {})
    assert model_path("student", recipe, tmp_path) != before  # hashed by the name at first


def test_every_key_is_of_the_first_version_or_has_a_neutral_value():
    """A key that is new goes into `identity.LATER`, one that has another name now into `identity.RENAMED`; the file of
    the first stays as it is. What came with a section, a kind or a method that is new itself needs no value.
    """
    first, there = set(FIRST_KEYS.read_text().split()), known_keys()
    for first_name, now in identity.RENAMED.items():
        there = {identity._renamed(key, now, first_name) for key in there}
    sections = first | {key.rpartition(".")[0] for key in first}
    came_later = set()
    for key in there - first:
        section, _, name = key.rpartition(".")
        came = identity.LATER.get(section)
        if ":" not in name and (not section or section in sections or (isinstance(came, dict) and name not in came)):
            came_later.add(key)
    assert came_later == set(identity.LATER)


def known_keys() -> set[str]:
    """Every key, kind and method that there is, as `identity` names them."""
    at_first = {now: first for first, now in identity.MOVED.items()}
    found = {*keys(RunConfig), *keys(LocalSettings, "cluster:local."), *keys(SlurmSettings, "cluster:slurm.")}
    for group in check.MODULES:
        for target in check.targets(group):
            method = f"{group}:{at_first.get(target, target).rpartition('.')[2]}"
            found |= {method, *(f"{method}.{knob}" for knob in knobs(group, target))}
    return found


def knobs(group: str, target: str) -> Iterator[str]:
    yield from check.COMMON_KNOBS.get(group, {})
    yield from (knob for knob in signatures.knobs(target) if knob not in check.BUILT_BY_THE_RUN.get(group, ()))


def keys(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every key that a type has, as `identity` names it."""
    for entry in fields(kind):
        yield prefix + entry.name
        yield from inner_keys(get_type_hints(kind, include_extras=True)[entry.name], prefix + entry.name)


def inner_keys(hint: Any, key: str) -> Iterator[str]:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is dict:
        yield from inner_keys(get_args(hint)[1], f"{key}.*")
    elif get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from inner_keys(one, key)
    elif is_dataclass(hint):
        by_kind = get_type_hints(hint).get("kind")
        for each in get_args(by_kind) if get_origin(by_kind) is Literal else ():
            yield f"{key}:{each}"
            yield from keys(hint, f"{key}:{each}.")
        if get_origin(by_kind) is not Literal:
            yield from keys(hint, f"{key}.")


def test_commands_are_given_todays_names(later, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["opd.train", "entropy_coef=0.1", "seed=1"])
    given = []
    cli.main(lambda: given.append(sys.argv[1:]), lambda arguments: [*arguments, "config=x"])
    monkeypatch.setattr(sys, "argv", ["sweeps.submit", "prompts.suffix=!"])
    sweeps.cli.run(given.append)
    assert given == [["signal.entropy=0.1", "seed=1", "config=x"], ["prompts.after=!"]]


def test_a_sweep_and_a_kept_cluster_of_an_earlier_version_are_read(later, monkeypatch, tmp_path):
    sweep = Sweep("s", "b", [], "report only", [0], [{"entropy_coef": [0.1, 0.2]}], [], [])
    assert arms(sweep) == [("signal.entropy=0.1",), ("signal.entropy=0.2",)]
    monkeypatch.setattr(identity, "LATER", {"cluster:local.max_retries": 7})
    owner = Submission("one", tmp_path, "s", "local", "c", "t", [], 1)
    (tmp_path / "cluster.json").write_text('{"kind": "local", "max_parallel": 2, "ranks": 1, "code": "c"}')
    assert settings_of(owner) == LocalSettings("local", 2, 1, 7)
