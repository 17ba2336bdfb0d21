"""What is equal is one run: a knob is read by its type, and a run that was begun under another spelling goes on."""

import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from opd.check import config as check, signatures
from opd.check.config import COMMON_KNOBS, MODULES
from opd.check.refusals import warnings
from opd.config.identity import run_id
from opd.config.schema import CONF, RunConfig
from opd.records.begun import as_begun
from opd.step.startup_checks import beyond_vocabulary
from sweeps.compose import composer


def composed(*overrides: str) -> RunConfig:
    with composer() as composing:
        return composing.config(list(overrides))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["rollout.temperature=1"], ["rollout.temperature=1.0"]),
        (["divergence=tsallis", "divergence.alpha=2"], ["divergence=tsallis", "divergence.alpha=2.0"]),
        (["filter=kl", "filter.p_min=30.5"], ["filter=kl", "filter.p_min=30.50"]),
        (["rollout.top_p=1"], ["rollout.top_p=1.0"]),
        (["rollout_correction.low=0", "+experiment=mis"], ["rollout_correction.low=0.0", "+experiment=mis"]),
        (["filter=kl", "filter.p_min=70"], ["filter=kl", "filter.p_min=70.0"]),
        (["teacher.temperature=1", "optim.lr=1"], ["teacher.temperature=1.0", "optim.lr=1.0"]),
        (["signal.entropy=0"], ["signal.entropy=0.0"]),
    ],
)
def test_equal_numbers_make_one_run(one: list[str], other: list[str]):
    assert run_id(asdict(composed(*one))) == run_id(asdict(composed(*other)))


def test_reading_by_type_changes_no_choice_of_conf():
    """Ids of runs of the files as they are stay: a whole number there stands where a whole number belongs."""
    for group in set(MODULES) - {"grader", "problems"}:
        for file in (CONF / group).glob("*.yaml"):
            node = {key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "defaults"}
            if "_target_" not in node:
                continue
            known = {*COMMON_KNOBS.get(group, {}), *signatures.knobs(node["_target_"]), "_target_", "_partial_"}
            for key, value in node.items():
                if key in known and not isinstance(value, dict) and not re.search(r"\$\{|\?\?\?", str(value)):
                    found = check._typed(group, {"_target_": node["_target_"], key: value})[key]
                    assert repr(found) == repr(value), (group, file.stem, key)


def test_more_threads_than_cores_are_said():
    cores = os.cpu_count() or 1
    assert warnings(composed(f"threads={cores}")) == []
    assert warnings(composed(f"threads={cores + 1}"))[0].startswith(
        f"threads={cores + 1}: this machine has {cores} cores"
    )


def test_a_k_beyond_the_vocabulary_is_said():
    config = composed("support=topk", "whitening=none", "support.k=32")
    assert beyond_vocabulary(config, 32) == beyond_vocabulary(composed(), 1) == []
    (said,) = beyond_vocabulary(config, 31)
    assert said.startswith("support.k=32: the vocabulary has 31 tokens, so these are all of them")


def begun(config: RunConfig, folder: Path) -> str:
    """Writes the config of a run as earlier code recorded it; returns its id."""
    content = asdict(config)
    own = folder / run_id(content)
    own.mkdir(parents=True)
    (own / "config.yaml").write_text(yaml.safe_dump(content))
    return own.name


def test_a_run_that_was_begun_under_another_spelling_goes_on(tmp_path: Path):
    today = composed(f"paths.outputs={tmp_path}", "study=s", "rollout.temperature=2")
    before = replace(today, rollout={**today.rollout, "temperature": 2})
    assert run_id(asdict(today)) != run_id(asdict(before))
    assert as_begun(today) == today
    other = replace(before, rollout={**before.rollout, "temperature": 3})
    (tmp_path / "s" / f"{today.name}-00000000-s{today.seed}").mkdir(parents=True)  # no record
    begun(other, tmp_path / "s")
    assert run_id(asdict(as_begun(today))) == run_id(asdict(today))
    name = begun(before, tmp_path / "s")
    assert run_id(asdict(as_begun(today))) == name
    begun(today, tmp_path / "s")
    assert run_id(asdict(as_begun(today))) == run_id(asdict(today)), "its own folder comes first"
