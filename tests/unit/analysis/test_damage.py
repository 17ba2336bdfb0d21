"""A study with a tenth of its files damaged: the rest reads as before, what is lost is named, nothing raises."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from analysis.load import Records, load
from analysis.report import main
from benchmarks.damage import EVERY, MARKED, damage_files
from opd.records.files import RecordError, read_json, read_lines
from opd.records.run_dir import find_runs
from opd.records.texts import pack
from tests.unit.analysis.fake_runs import Fake, report_files, write_run

FRAMES = ("runs", "training", "scores", "answers")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    for name, num_steps in (("default", 6), ("other", 6), ("teacher", 0)):
        for seed in range(3):
            fake = Fake(name=name, seed=seed, num_steps=num_steps, every=2, k=2, benchmarks={"a": 3, "b": 2})
            write_run(root, fake, folder=f"{name}-{seed}")
    write_run(
        root, Fake(name="late", state="running", num_steps=9, step=5, every=2, k=2, benchmarks={"a": 3}), folder="late"
    )
    return root


@pytest.fixture(scope="module")
def before(sound) -> Records:
    return load(sound)


def damaged(sound: Path, root: Path, kinds: list[str], seed: int) -> dict[str, set[str]]:
    """A copy of `sound` under `root` with a tenth of its files damaged; run → how."""
    shutil.copytree(sound, root)
    return damage_files(root, share=0.1, kinds=kinds, seed=seed)


def of(records: Records, run: str) -> list[pd.DataFrame]:
    return [frame[frame["run"] == run].reset_index(drop=True) for frame in map(records.__getattribute__, FRAMES)]


def alike(one: Records, other: Records, run: str) -> bool:
    return all(a.equals(b) for a, b in zip(of(one, run), of(other, run), strict=True))


FIXTURES = (HealthCheck.function_scoped_fixture,)


@settings(deadline=None, max_examples=25, suppress_health_check=FIXTURES)
@given(st.lists(st.sampled_from(sorted(EVERY)), min_size=1), st.integers(0, 2**32))
def test_what_is_damaged_is_named_and_the_rest_reads_as_before(sound, before, tmp_path_factory, kinds, seed):
    root = tmp_path_factory.mktemp("damaged") / "runs"
    touched = damaged(sound, root, kinds, seed)
    after = load(root)
    named = {run for run, *_ in after.damage}
    found = {run.path.name for run in find_runs(root)}  # all but one that lost every record it is known by
    for run in before.runs["run"]:
        if run not in touched:
            assert alike(before, after, run) and run not in named, run
        elif run in found and not alike(before, after, run) and touched[run] <= set(MARKED):
            assert run in named, (run, touched[run])
    assert named <= set(touched)
    assert not any(str(root) in reason for reason in after.excluded["reason"])
    for name in ("step", "num_steps", "seed"):
        assert after.runs[name].dtype == before.runs[name].dtype
    shutil.rmtree(root)


RECORDS = ("config.yaml", "status.json", "manifest.json", "metrics.jsonl", "evaluate/step_000002.jsonl")


def test_lists_without_end_are_no_record(tmp_path):
    deep = tmp_path / "manifest.json"
    deep.write_text("[" * 100_000 + "\n")
    for read in (read_json, lambda file: list(read_lines(file))):
        with pytest.raises(RecordError, match="recursion"):
            read(deep)


@pytest.mark.parametrize("kind", sorted(MARKED))
def test_each_damage_of_each_record_is_named(sound, before, tmp_path, kind):
    for number, record in enumerate(RECORDS):
        root = tmp_path / str(number)
        shutil.copytree(sound, root)
        MARKED[kind](root / "default-1" / record, np.random.default_rng(3))
        after = load(root)
        assert {run for run, *_ in after.damage} == {"default-1"}, record
        assert all(alike(before, after, run) for run in before.runs["run"] if run != "default-1")


def test_a_report_of_every_damage_at_once_has_the_numbers_of_the_rest(sound, tmp_path):
    """A run for each kind of damage of each record, beside the sound ones."""
    root, seed = tmp_path / "runs", 10
    shutil.copytree(sound, root)
    for kind, damage in EVERY.items():
        for record in RECORDS:
            run = root / f"{kind} {record.replace('/', ' ')}"
            shutil.copytree(sound / "default-1", run)
            config = run / "config.yaml"
            config.write_text(config.read_text().replace('"seed": 1', f'"seed": {seed}').replace("default", "hurt"))
            damage(run / record, np.random.default_rng(seed))
            seed += 1
    reports = [
        report_files(f"runs={each}", "out=x", "bootstrap=100", "figures=false", "cache=false") for each in (sound, root)
    ]
    for name in ("runs", "differences", "scores"):
        of_sound, of_all = (made[f"tables/{name}.csv"].splitlines() for made in reports)
        assert len(of_sound) > 1 and set(of_sound) <= set(of_all), name
    assert all(kind in reports[1]["tables/excluded.csv"] for kind in MARKED)


def test_texts_that_cannot_be_read_are_named_and_change_no_number(sound, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(sound, root)
    last = max((root / "other-0/evaluate").glob("step_*.jsonl"))
    last.with_suffix(".text.jsonl.gz").write_bytes(b"no gzip")
    before, after = load(sound), load(root)
    (damage,) = set(after.damage) - set(before.damage)
    assert damage[:2] == ("other-0", "the texts of its last evaluation") and "is damaged" in damage[2]
    assert before.scores.equals(after.scores) and before.runs.equals(after.runs)


def test_copies_and_foreign_files_are_named_and_not_counted(sound, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(sound, root)
    shutil.copytree(sound / "other-1", root / "a copy")
    evaluations = root / "other-0/evaluate"
    for name in ("step_000002 (1).jsonl", "step_0000002.jsonl", "notes.txt", ".hidden"):
        shutil.copy(evaluations / "step_000002.jsonl", evaluations / name)
    shutil.copy(evaluations / "step_000002.jsonl", evaluations / f"step_{10**40}.jsonl")
    for name in ("step_000002.text.jsonl.gz", "step_000002.text.jsonl.gz.old"):
        (evaluations / name).write_bytes(pack("aime24", "1", ["what was said"], problem="p"))
    before, after = load(sound), load(root)
    assert {(run, what) for run, what, _ in after.damage} >= {
        ("other-0", "evaluate/step_000002 (1).jsonl"),
        ("other-0", "evaluate/step_0000002.jsonl"),
        ("other-0", "evaluate/notes.txt"),
        ("other-0", "evaluate/step_000002.text.jsonl.gz.old"),
        ("other-0", f"its evaluation at step {10**40}"),
    }
    assert not any("hidden" in what or what.endswith(".gz") for _, what, _ in after.damage)
    copies = {run for run, what, reason in after.damage if reason.endswith("which is counted")}
    assert copies in ({"a copy"}, {"other-1"})
    for run in set(before.runs["run"]) - {"other-0", "other-1"}:
        assert alike(before, after, run)


def test_folder_that_cannot_be_listed_is_named(sound, tmp_path, monkeypatch):
    shutil.copytree(sound, tmp_path / "runs")
    closed, listing = str(tmp_path / "runs/other-2"), os.scandir

    def refusing(path="."):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert load(tmp_path / "runs").damage == [("other-2", "all in it", "Permission denied")]


def test_strict_refuses_damage_in_a_sentence_and_unfinished_runs_not(sound, tmp_path, capsys):
    root = tmp_path / "runs"
    shutil.copytree(sound, root)
    strict = [f"runs={root}", f"out={tmp_path / 'out'}", "bootstrap=100", "figures=false", "strict=true"]
    assert len(load(root).excluded) == 1 and main(strict) == 0  # one is still running
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    for name in ("default-0", "default-1", "other-2"):
        (root / name / "evaluate/step_000002.jsonl").write_text("")
    assert main(strict) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "strict=true allows no damage: default-0: its best score over training: one of its" in said
    assert "default-0: its evaluation at step 2: has no answers; " in said and "; and 3 more; " in said
    assert main([*strict[:-1], "strict=false"]) == 0


def test_the_study_is_sound(sound):
    records = load(sound)
    assert records.damage == [] and len(find_runs(sound)) == len(records.runs) == 10
