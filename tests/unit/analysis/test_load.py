import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.cache import Cache
from analysis.load import load
from opd.records.run_dir import find_runs
from tests.unit.analysis.fake_runs import HOSTILE, Fake, write_run

TIMES = {"started": "", "updated": "", "host": "", "job_id": None, "attempts": 1}
STATUS = {"state": "finished", "step": 4, "num_steps": 4, "error": None, **TIMES}
SMALL = Fake(num_steps=4, every=2, k=2, benchmarks={"arithmetic": 3})


def left_out(records) -> set[tuple[str, str, str]]:
    return {tuple(row) for row in records.excluded.itertuples(index=False, name=None)}


def only(records, run: str) -> list[pd.DataFrame]:
    frames = (records.runs, records.training, records.scores, records.answers, records.excluded)
    return [frame[frame["run"] == run].reset_index(drop=True) for frame in frames]


def test_a_run_is_read_whole(tmp_path):
    run = write_run(tmp_path, SMALL)
    records = load(tmp_path)
    (row,) = records.runs.to_dict("records")
    assert row["run"] == f"demo/{run.path.name}" and row["arm"] == run.path.name.removesuffix("-s0")
    assert (row["name"], row["study"], row["seed"], row["state"]) == ("default", "demo", 0, "finished")
    assert row["counted"] and row["last_known"] and row["max_known"]
    assert list(records.training["step"]) == [0, 1, 2, 3, 4]
    assert math.isnan(records.training["grad_norm"][0]) and records.training["grad_norm"][1:].notna().all()
    assert records.training["grad_norm"][4] == run.metrics()[4]["grad_norm"]
    assert records.scores.groupby("step").size().to_dict() == {0: 3, 2: 3, 4: 3}
    assert len(records.answers) == 3
    assert left_out(records) == set()


def test_scores_are_of_the_samples(tmp_path):
    run = write_run(tmp_path, SMALL)
    scores = load(tmp_path).scores
    for step in (0, 2, 4):
        right = [answer.correct for answer in run.samples(step)]
        assert scores.loc[scores["step"] == step, "mean"].mean() == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", None, "config.yaml: No such file or directory"),
        ("config.yaml", "a: [", "config.yaml: "),
        ("config.yaml", "- 1", "config.yaml: is not a mapping"),
        ("config.yaml", "model: 7b", "config.yaml: has no name"),
        ("config.yaml", "{name: x, study: y, seed: one}", "config.yaml: seed is 'one', not of type int"),
        ("config.yaml", "{name: x, study: y, seed: true}", "config.yaml: seed is True, not of type int"),
        ("config.yaml", "{name: 7, study: y, seed: 0}", "config.yaml: name is 7, not of type str"),
        ("config.yaml", "{name: x, study: y, seed: 0, 1: 2}", "TypeError: "),
        ("config.yaml", "\x00", "config.yaml: "),
        ("config.yaml", "name: x\nstudy: y\nseed: 0\ngamma: 0.", "config.yaml: its last line is cut off"),
        ("status.json", None, "status.json: No such file or directory"),
        ("status.json", "", "status.json: Expecting value"),
        ("status.json", json.dumps({**STATUS, "state": "happy"}), "status.json: state is 'happy'"),
        ("status.json", json.dumps({**STATUS, "step": "4"}), "status.json: step is '4', not of type int"),
        ("status.json", "{}", "status.json: has no state"),
        ("status.json", "[" * 100_000, "status.json: maximum recursion depth exceeded"),
    ],
)
def test_unreadable_run_is_named_and_the_rest_is_as_without_it(tmp_path, file, content, reason):
    write_run(tmp_path, SMALL)
    alone = load(tmp_path)
    broken = write_run(tmp_path, replace(SMALL, name="broken"), folder="broken")
    (broken.path / file).unlink()
    if content is not None:
        (broken.path / file).write_text(content)
    records = load(tmp_path)
    ((run, what, why),) = left_out(records)
    assert (run, what) == ("broken", "the run") and why.startswith(reason)
    assert str(tmp_path) not in why
    for name in ("runs", "training", "scores", "answers"):
        pd.testing.assert_frame_equal(getattr(records, name), getattr(alone, name))


def test_damaged_evaluation_hides_the_best_score_and_if_it_is_the_last_the_last(tmp_path):
    for name, step in (("early", 2), ("late", 4)):
        run = write_run(tmp_path, replace(SMALL, name=name), folder=name)
        run.samples_file(step).write_bytes(run.samples_file(step).read_bytes()[:-1])
    records = load(tmp_path)
    known = records.runs.set_index("run")[["counted", "last_known", "max_known"]].T.to_dict("list")
    assert known == {"early": [True, True, False], "late": [False, False, False]}
    assert left_out(records) == {
        ("early", "its evaluation at step 2", "its last line is cut off"),
        ("early", "its best score over training", "one of its evaluations is damaged"),
        ("late", "its evaluation at step 4", "its last line is cut off"),
        ("late", "its best score over training", "one of its evaluations is damaged"),
        ("late", "means and differences", "finished 4 steps, last evaluated at step 2"),
    }


def test_evaluation_cut_between_lines_is_found_by_the_others(tmp_path):
    run = write_run(tmp_path, SMALL, folder="run")
    lines = run.samples_file(2).read_bytes().splitlines(keepends=True)
    run.samples_file(2).write_bytes(b"".join(lines[:-2]))
    reason = "lacks 1 of the 3 problems of the run's other evaluations"
    assert ("run", "its evaluation at step 2", reason) in left_out(load(tmp_path))


def test_torn_training_curve_loses_its_last_line_only(tmp_path):
    run = write_run(tmp_path, SMALL, folder="run")
    with run.metrics_file.open("a") as file:
        file.write('{"step": 5, "lo')
    records = load(tmp_path)
    assert list(records.training["step"]) == [0, 1, 2, 3, 4]
    assert left_out(records) == {("run", "the last line of its training curves", "is cut off")}
    assert records.runs["counted"].all()


@pytest.mark.parametrize(
    "line", ['{"step": "5"}', '{"step": null}', "{}", "nonsense", '{"step": 5, "loss": 1' + "0" * 400 + "}"]
)
def test_broken_training_curve_costs_no_score(tmp_path, line):
    run = write_run(tmp_path, SMALL, folder="run")
    with run.metrics_file.open("a") as file:
        file.write(line + "\n")
    records = load(tmp_path)
    assert records.training.empty and len(records.scores) == 9
    ((name, what, _),) = left_out(records)
    assert (name, what) == ("run", "its training curves")


def test_numbers_that_json_cannot_hold_are_missing(tmp_path):
    run = write_run(tmp_path, SMALL, folder="run")
    with run.metrics_file.open("a") as file:
        file.write('{"step": 5, "loss": NaN, "grad_norm": null, "filter/kept": "all", "entropy/student": Infinity}\n')
    last = load(tmp_path).training.iloc[-1]
    assert last["step"] == 5
    assert last[["loss", "grad_norm", "filter/kept", "entropy/student"]].isna().all()


@pytest.mark.parametrize(("state", "step"), [("running", 2), ("failed", 3), ("preempted", 2)])
def test_unfinished_run_is_read_but_does_not_count(tmp_path, state, step):
    write_run(tmp_path, replace(SMALL, state=state, step=step), folder="run")
    records = load(tmp_path)
    reason = f"{state} at step {step} of 4, last evaluated at step 2"
    assert left_out(records) == {("run", "means and differences", reason)}
    assert not records.runs["counted"].any()
    assert not records.scores.empty and records.runs["last_known"].all()


def test_run_without_an_evaluation_is_named(tmp_path):
    run = write_run(tmp_path, replace(SMALL, state="pending", step=0), folder="run")
    shutil.rmtree(run.path / "evaluate")
    run.metrics_file.unlink()
    records = load(tmp_path)
    assert left_out(records) == {("run", "its scores", "pending at step 0 of 4, no readable evaluation")}
    assert len(records.runs) == 1 and records.scores.empty and records.training.empty


def test_finished_run_whose_last_step_was_not_evaluated_does_not_count(tmp_path):
    run = write_run(tmp_path, SMALL, folder="run")
    run.samples_file(4).unlink()
    records = load(tmp_path)
    assert left_out(records) == {
        ("run", "its evaluation at step 4", "is missing"),
        ("run", "its best score over training", "one of its evaluations is damaged"),
        ("run", "means and differences", "finished 4 steps, last evaluated at step 2"),
    }


def test_an_evaluation_due_at_the_step_where_a_run_ended_is_missed(tmp_path):
    run = write_run(tmp_path, replace(SMALL, state="failed", step=4, num_steps=6), folder="run")
    run.samples_file(4).unlink()
    assert ("run", "its evaluation at step 4", "is missing") in left_out(load(tmp_path))


def test_what_is_left_of_a_config_is_not_the_runs(tmp_path):
    write_run(tmp_path, replace(SMALL, name="whole"))
    run = write_run(tmp_path, SMALL, folder="run")
    config = {**run.config(), "evaluate": {**run.config()["evaluate"], "at_start": False}}
    run.config_file.write_text(json.dumps(config) + "\n")
    records = load(tmp_path)
    reason = "config.yaml: is not the config that the run was started with, according to manifest.json"
    assert left_out(records) == {("run", "the run", reason)} and len(records.runs) == 1


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "manifest.json: No such file or directory"), ("{}", "has no config_hash")]
)
def test_manifest_that_tells_nothing_is_named_and_the_run_counts(tmp_path, content, reason):
    run = write_run(tmp_path, SMALL, folder="run")
    run.manifest_file.unlink()
    if content is not None:
        run.manifest_file.write_text(content)
    records = load(tmp_path)
    assert left_out(records) == {("run", "its manifest", reason)} and records.runs["counted"].all()


def test_answers_missing_of_the_only_evaluation_are_noticed_by_their_mean_length(tmp_path):
    run = write_run(tmp_path, replace(SMALL, num_steps=0), folder="run")
    lines = run.samples_file(0).read_bytes().splitlines(keepends=True)
    run.samples_file(0).write_bytes(b"".join(lines[:-2]))
    ((_, what, why),) = {each for each in left_out(load(tmp_path)) if each[1].startswith("its evaluation")}
    assert what == "its evaluation at step 0"
    assert re.fullmatch(r"its answers have [\d.]+ tokens on average, but [\d.]+ according to metrics.jsonl", why)


def test_of_duplicates_the_finished_one_counts_then_the_one_at_home(tmp_path):
    write_run(tmp_path, SMALL, folder="a-copy")
    home = write_run(tmp_path, SMALL)
    write_run(tmp_path, replace(SMALL, state="running", step=2), folder="a-start")
    other_seed = write_run(tmp_path, replace(SMALL, seed=1))
    records = load(tmp_path)
    assert set(records.runs["run"]) == {f"demo/{home.path.name}", f"demo/{other_seed.path.name}"}
    reason = f"has the name, config and seed of demo/{home.path.name}, which is counted"
    assert left_out(records) == {("a-copy", "the run", reason), ("a-start", "the run", reason)}


def test_of_unfinished_duplicates_the_one_that_came_furthest_counts(tmp_path):
    for folder, step in (("a", 2), ("b", 3), ("c", 1)):
        write_run(tmp_path, replace(SMALL, state="failed", step=step), folder=folder)
    records = load(tmp_path)
    assert records.runs["run"].tolist() == ["b"] and records.runs["step"].tolist() == [3]
    assert ("a", "the run", "has the name, config and seed of b, which is counted") in left_out(records)


def test_same_name_with_another_config_is_no_duplicate(tmp_path):
    write_run(tmp_path, SMALL)
    write_run(tmp_path, replace(SMALL, config={"gamma": 0.5}))
    assert load(tmp_path).runs["arm"].nunique() == 2


def test_nothing_hostile_is_left_in_a_name(all_runs):
    records = load(all_runs)
    assert len(find_runs(all_runs)) > len(records.runs)
    shown = [*records.runs["name"], *records.runs["error"].dropna(), *records.answers["prediction"].dropna()]
    assert len(HOSTILE) < len(shown)
    for text in shown:
        assert text.encode() and len(text) <= 300 and text.isprintable()


def test_folders_whose_printable_names_are_alike_stay_apart(tmp_path):
    for seed, mark in enumerate("\u200b\u200c"):
        write_run(tmp_path, replace(SMALL, seed=seed), folder=f"run{mark}")
    assert set(load(tmp_path).runs["run"]) == {"run\ufffd", "run\ufffd #2"}


def test_runs_are_in_order_of_name_and_seed_whatever_their_folders_are_called(tmp_path):
    for folder, name, seed in (("1", "b", 0), ("2", "a", 1), ("3", "a", 0)):
        write_run(tmp_path, replace(SMALL, name=name, seed=seed), folder=folder)
    assert list(load(tmp_path).runs["run"]) == ["3", "2", "1"]


def test_folder_that_is_itself_a_run(tmp_path):
    write_run(tmp_path, SMALL, folder=".")
    assert list(load(tmp_path).runs["run"]) == ["."]


def test_random_damage_never_raises_and_never_touches_another_run(demo_runs, tmp_path):
    """Files cut, overwritten, emptied or removed: each is listed, or was harmless; sound runs read as before."""
    sound, damaged = demo_runs, tmp_path / "damaged"
    shutil.copytree(sound, damaged)
    rng = np.random.default_rng(0)
    files = sorted(path for path in damaged.rglob("*") if path.is_file())
    hit = rng.choice(len(files), len(files) // 10, replace=False)
    touched = set()
    for number in hit:
        file = files[number]
        content = file.read_bytes()
        at = int(rng.integers(len(content)))
        kind = rng.integers(4)
        if kind == 0:
            file.unlink()
        else:
            file.write_bytes([content[:at], content[:at] + b"\xff\x00" + content[at + 2 :], b""][kind - 1])
        run = file.parent if file.parent.name != "evaluate" else file.parent.parent
        touched.add(run.relative_to(damaged).as_posix())
    before, after = load(sound), load(damaged)
    spared = set(before.runs["run"]) - touched
    assert spared and touched
    for run in spared:
        for one, other in zip(only(before, run), only(after, run), strict=True):
            pd.testing.assert_frame_equal(one, other)


def with_problems(run, content: str | None) -> None:
    own = (
        {}
        if content is None
        else {"contents": {"evaluate.sources.arithmetic": f"sha256:{content}", "student.model": "x"}}
    )
    run.write_manifest({**run.manifest(), **own})


def test_benchmarks_of_other_problems_are_told_apart(tmp_path):
    usual = [write_run(tmp_path, replace(SMALL, seed=seed)) for seed in range(3)]
    other, older = write_run(tmp_path, replace(SMALL, name="other")), write_run(tmp_path, replace(SMALL, name="older"))
    for run in usual:
        with_problems(run, "aaaaaaaaaa")
    with_problems(other, "bbbbbbcccc")
    with_problems(older, None)
    cache = Cache(tmp_path, margin=-1)
    for _ in range(2):  # the second time from the cache
        records = load(tmp_path, cache=cache)
        for frame in (records.scores, records.answers):
            named = frame.groupby(frame["run"].str.partition("/")[2].str.partition("-")[0])["benchmark"].unique()
            assert {name: list(found) for name, found in named.items()} == {
                "default": ["arithmetic"],
                "older": ["arithmetic"],
                "other": ["arithmetic-bbbbbb"],
            }
        (row,) = left_out(records)
        assert row[1:] == (
            "its scores on arithmetic",
            "has other problems, answers or another grader than in most runs: it is arithmetic-bbbbbb",
        )
        assert records.damage == []


@pytest.mark.parametrize(
    "contents", [5, [1], {"evaluate.sources.arithmetic": {"a": 1}}, {"evaluate.sources.\u202e": "x"}]
)
def test_damaged_hashes_of_problems_leave_the_run(tmp_path, contents):
    run = write_run(tmp_path, SMALL)
    run.write_manifest({**run.manifest(), "contents": contents})
    assert set(load(tmp_path).scores["benchmark"]) == {"arithmetic"}
