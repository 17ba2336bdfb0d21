import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import report, study
from analysis.evaluation import grades
from analysis.load import load
from analysis.read_study import read_study
from analysis.studies import counted_runs, read_studies
from analysis.study import exported, public
from analysis.study_schema import AVERAGED, CONFIGS
from docs import verdicts as docs_verdicts
from opd.grading.scores import best_at_k, best_at_k_resampled, mean_at_k
from opd.records.files import RecordError
from opd.records.run_dir import find_runs
from tests.unit.analysis.fake_runs import Fake, report_files, write_run

ROOT = Path(__file__).parents[3]
FAST = ["bootstrap=100", "figures=false", "cache=false"]


@pytest.fixture(scope="module")
def exports(published_runs, tmp_path_factory) -> Path:
    """The exports of `published_runs`, to read only."""
    out = tmp_path_factory.mktemp("exports")
    assert study.main([f"runs={published_runs}", f"out={out}"]) == 0
    return out


def reports(runs: Path, out: Path, *more: str) -> tuple[dict, dict]:
    study.write_study(runs, out)
    made, again = (report_files(f"runs={folder}", "out=x", *FAST, *more) for folder in (runs, out))
    return made, again


def cells(csv: str | bytes) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(str(csv)), dtype=object, keep_default_na=False)


def is_close(one: str, other: str) -> bool:
    """The same text, or numbers that 32 bits do not tell apart."""
    try:
        return one == other or float(one) == pytest.approx(float(other), rel=2e-6, abs=2e-6)
    except ValueError:
        return False


@pytest.mark.parametrize("which", ["published_runs", "all_runs"])
def test_the_report_of_exports_is_the_report_of_the_runs(which, request, tmp_path):
    """Of broken and hostile runs too; but for the intervals of lengths, and numbers beyond 32 bits."""
    made, again = reports(request.getfixturevalue(which), tmp_path, "baseline=mis" if "pub" in which else "seed=0")
    assert made.keys() == again.keys()
    assert made["report.md"] == again["report.md"]
    for name in made.keys() - {"report.html", "report.md"}:
        if not name.endswith(".csv"):
            assert made[name] == again[name], name
            continue
        own, other = cells(made[name]), cells(again[name])
        if name in ("tables/scores_long.csv", "tables/differences_long.csv"):
            of_wholes = own["score"].isin(AVERAGED)
            lost = [column for column in ("low", "high", "p", "p_holm", "p_bh") if column in own]
            assert of_wholes.any() and (other.loc[of_wholes, lost] == "").all(axis=None)
            own.loc[of_wholes, lost] = ""
        assert own.shape == other.shape and list(own) == list(other)
        apart = [(a, b) for a, b in zip(own.to_numpy().flat, other.to_numpy().flat, strict=True) if not is_close(a, b)]
        assert not apart, (name, apart[:3])


def test_what_is_exported_is_what_was_read(all_runs, tmp_path):
    records = load(all_runs)
    study.write_study(all_runs, tmp_path)
    found = read_study(tmp_path)
    for name in ("runs", "answers", "excluded"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(records, name), check_dtype=False)
    keys = ["run", "step", "benchmark", "problem", "k", "mean", "best", "best_resampled", "maj"]
    pd.testing.assert_frame_equal(found.scores[keys], records.scores[keys], check_dtype=False, rtol=0, atol=0)
    assert found.damage == records.damage and records.damage
    assert found.details.keys() == records.details.keys()
    for arm, own in records.details.items():
        assert found.details[arm].rollouts == own.rollouts and found.details[arm].ranks == own.ranks
        assert found.details[arm].config == public(own.config)


def test_exports_of_exports_are_the_same_bytes(exports):
    assert exported(read_study(exports)) == {file.name: file.read_bytes() for file in exports.iterdir()}


@pytest.fixture
def parts(tmp_path) -> Path:
    """A folder of two exports: an arm with two seeds in each, of which one is in both, and an arm in one alone."""
    for part, runs in {"a": [("mis", 0), ("mis", 1)], "b": [("mis", 1), ("mis", 2), ("half", 0)]}.items():
        for name, seed in runs:
            write_run(tmp_path / f"runs-{part}", Fake(name=name, seed=seed, num_steps=2, every=2, benchmarks={"x": 3}))
        study.write_study(tmp_path / f"runs-{part}", tmp_path / "parts" / part)
    return tmp_path / "parts"


def test_exports_in_one_folder_are_read_as_one_and_each_run_once(parts, tmp_path):
    together = tmp_path / "together"
    for name, seed in [("mis", 0), ("mis", 1), ("mis", 2), ("half", 0)]:
        write_run(together, Fake(name=name, seed=seed, num_steps=2, every=2, benchmarks={"x": 3}))
    found, whole = read_studies(parts), load(together)
    for name in ("runs", "training", "scores", "answers"):
        own, other = (
            getattr(records, name).assign(run=lambda rows: rows["run"].str.rpartition("/")[2])
            for records in (found, whole)
        )
        key = ["run", *(column for column in ("step", "benchmark", "problem") if column in own)]
        own, other = (
            each.drop(columns=list(AVERAGED), errors="ignore").sort_values(key, ignore_index=True)
            for each in (own, other)
        )
        pd.testing.assert_frame_equal(own, other, check_dtype=False, rtol=2e-6)
    assert {arm: one.config for arm, one in found.details.items()} == {
        arm: public(one.config) for arm, one in whole.details.items()
    }
    ((run, left_out, reason),) = found.excluded.itertuples(index=False, name=None)
    assert run.startswith("b/demo/mis-") and run.endswith("-s1") and left_out == "the run"
    assert reason.startswith("has the name, config and seed of a/demo/mis-")
    assert counted_runs(parts) == {run.path.name for run in find_runs(together)}


def test_a_damaged_export_in_a_folder_is_named_and_a_folders_own_runs_come_first(parts, capsys):
    (parts / "b" / "scores.parquet").write_bytes(b"?")
    assert report.main([f"runs={parts}", f"out={parts / 'report'}", *FAST]) == 2
    assert re.match(rf"runs={re.escape(str(parts))}: b/scores.parquet: is not a readable", capsys.readouterr().err)
    write_run(parts, Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    assert report.main([f"runs={parts}", f"out={parts / 'report'}", *FAST]) == 0
    assert "1 finished run " in capsys.readouterr().out


def test_where_things_are_is_not_exported(tmp_path):
    config = {
        "paths": {"outputs": "/secret/place"},
        "teacher": {"server": {"urls": ["http://secret"]}, "models": ["a"]},
    }
    write_run(tmp_path / "runs", Fake(num_steps=2, every=2, benchmarks={"x": 3}, config=config))
    study.write_study(tmp_path / "runs", tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert b"secret" not in file.read_bytes()
    (details,) = read_study(tmp_path / "out").details.values()
    assert details.config["teacher.models"] == ["a"]


def test_strict_refuses_what_was_left_out_of_the_exports_too(all_runs, tmp_path, capsys):
    study.write_study(all_runs, tmp_path)
    assert report.main([f"runs={tmp_path}", f"out={tmp_path / 'x'}", *FAST, "strict=true"]) == 2
    said = capsys.readouterr().err
    assert report.main([f"runs={all_runs}", f"out={tmp_path / 'x'}", *FAST, "strict=true"]) == 2
    assert said == capsys.readouterr().err.replace(str(all_runs), str(tmp_path))


def test_a_number_that_32_bits_do_not_hold_is_kept(tmp_path):
    run = write_run(tmp_path / "runs", Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    run.append_metrics({"step": 2, "grad_norm": 1e300, "evaluate/num_tokens": run.metrics()[2]["evaluate/num_tokens"]})
    study.write_study(tmp_path / "runs", tmp_path / "out")
    assert read_study(tmp_path / "out").training["grad_norm"].iloc[-1] == 1e300


@pytest.mark.parametrize("k", [1, 3, 8, 16])
def test_grades_of_a_count_are_those_of_the_answers(k: int):
    for right in range(k + 1):
        given = [True] * right + [False] * (k - right)
        scores = mean_at_k(given), best_at_k(given), best_at_k_resampled(given)
        np.testing.assert_allclose(grades(np.array(right), k), scores, rtol=1e-15)


# ---- damaged ones


def setting(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[frame.index[0], column] = value
        return frame.convert_dtypes() if value is None else frame.infer_objects()

    return change


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame[:1]])


DAMAGE: list[tuple[str, Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    ("runs", lambda frame: frame.drop(columns="state"), "runs.parquet: has no column state"),
    ("runs", lambda frame: frame.assign(seed="0"), "runs.parquet: column seed is of type"),
    ("runs", lambda frame: frame.assign(seed=0.5), "runs.parquet: column seed is of type double, not int"),
    ("runs", setting("name", None), "runs.parquet: column name has no value in 1 rows"),
    ("runs", setting("name", "<b>\u202e"), "runs.parquet: column name has .*not plain text"),
    ("runs", setting("name", "other"), "runs.parquet: column name, row 0: is not the name of its arm"),
    ("runs", setting("state", "lost"), "runs.parquet: column state, row 0: is none of pending"),
    ("runs", setting("step", -1), "runs.parquet: column step, row 0: is less than 0"),
    ("runs", setting("seed", 2**60), r"runs.parquet: column seed, row 0: is beyond 2\^53"),
    ("runs", setting("arm", "mis-00000000"), "runs.parquet: column arm, row 0: has no config in configs.json"),
    ("runs", setting("run", "elsewhere"), "training.parquet: column run, row 0: is not a run of runs.parquet"),
    ("runs", twice, r"runs.parquet: column run, row \d+: is a duplicate"),
    ("runs", lambda frame: frame.assign(num_steps=99), "runs.parquet: column counted, row 0: is true of a run"),
    ("training", setting("grad_norm", np.inf), "training.parquet: column grad_norm, row 0: is not a finite number"),
    ("training", twice, r"training.parquet: column run, step, row \d+: is a duplicate"),
    ("scores", setting("mean", 0.3), "scores.parquet: column mean, row 0: is not a share of k answers"),
    ("scores", setting("mean", 2.0), "scores.parquet: column mean, row 0: is not a share of k answers"),
    ("scores", setting("mean", np.nan), "scores.parquet: column mean has no value in 1 rows"),
    ("scores", setting("mean", np.inf), "scores.parquet: column mean, row 0: is not a finite number"),
    ("scores", setting("maj", 0.5), "scores.parquet: column maj, row 0: is neither 0 nor 1"),
    ("scores", setting("k", 0), "scores.parquet: column k, row 0: is less than 1"),
    ("scores", setting("step", -1), "scores.parquet: column step, row 0: is less than 0"),
    ("scores", setting("benchmark", "average"), "scores.parquet: column benchmark, row 0: is average"),
    ("scores", twice, r"scores.parquet: column run, step, benchmark, problem, row \d+: is a duplicate"),
    ("evaluations", lambda frame: frame[1:], "scores.parquet: column run, step, benchmark, row 0: has no row in"),
    ("evaluations", setting("truncated", 1.5), "evaluations.parquet: column truncated, row 0: is not between"),
    ("evaluations", setting("length", -1.0), "evaluations.parquet: column length, row 0: is less than 0"),
    ("answers", lambda frame: frame.assign(correct=1), "answers.parquet: column correct is of type int64, not bool"),
    ("rollouts", setting("record", "{"), "rollouts.parquet: column record, arm .*: is not JSON"),
    ("rollouts", setting("record", "[" * 10**6), "rollouts.parquet: column record, arm .*: is not JSON"),
    ("rollouts", setting("record", "{}"), "rollouts.parquet: column record, arm .*: is not a record of rollouts"),
    ("excluded", lambda frame: frame.drop(columns="reason"), "excluded.parquet: has no column reason"),
]


@pytest.mark.parametrize(("table", "change", "wrong"), DAMAGE, ids=[wrong[:60] for *_, wrong in DAMAGE])
def test_a_damaged_table_is_named_with_its_column(exports, tmp_path, table, change, wrong):
    for file in exports.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = change(pd.read_parquet(exports / f"{table}.parquet"))
    pq.write_table(pa.Table.from_pandas(changed, preserve_index=False), tmp_path / f"{table}.parquet")
    with pytest.raises(RecordError, match=rf"^{wrong}"):
        read_study(tmp_path)


def configs(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        found = json.loads(content)
        change(found)
        return json.dumps(found).encode()

    return changed


def first(found: dict) -> dict:
    return found["arms"][min(arm for arm in found["arms"] if arm.startswith("mis"))]


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        (
            CONFIGS,
            configs(lambda found: found["shared"].update(gamma=0.5)),
            "configs.json: the config of .* has the hash",
        ),
        (CONFIGS, configs(lambda found: first(found).update(ranks=0)), "configs.json: ranks of mis-.* is not a number"),
        (
            CONFIGS,
            configs(lambda found: first(found).update(more=1)),
            "configs.json: is not what analysis.study writes",
        ),
        (CONFIGS, configs(lambda found: found.pop("shared")), "configs.json: is not what analysis.study writes"),
        (CONFIGS, lambda content: content[:-9], "configs.json: "),
        (CONFIGS, None, "configs.json: No such file"),
        ("scores.parquet", None, "scores.parquet: No such file"),
        ("scores.parquet", lambda content: content[:-9], "scores.parquet: is not a readable Parquet file"),
        ("scores.parquet", lambda content: b"", "scores.parquet: is not a readable Parquet file"),
        (
            "scores.parquet",
            lambda content: content[: len(content) // 4] + b"\xff" * 64 + content[len(content) // 4 + 64 :],
            "scores.parquet: ",
        ),
    ],
)
def test_a_damaged_or_missing_file_ends_the_report_in_a_sentence(exports, tmp_path, capsys, name, change, wrong):
    for file in exports.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if change:
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    else:
        (tmp_path / name).unlink()
    assert report.main([f"runs={tmp_path}", f"out={tmp_path / 'report'}", *FAST]) == 2
    said = capsys.readouterr()
    assert re.match(rf"runs={re.escape(str(tmp_path))}: {wrong}", said.err) and said.err.count("\n") == 1
    assert said.out == "" and not (tmp_path / "report").exists()


def test_more_rows_than_a_study_has_are_not_unpacked(exports, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.read_study.MOST_ROWS", 100)
    with pytest.raises(RecordError, match=r"scores.parquet: is too large|training.parquet: is too large"):
        read_study(exports)


@pytest.mark.parametrize("arguments", [[], ["runs=x"], ["runs=x", "out="], ["runs=x", "out=y", "z=1"], ["x", "y"]])
def test_a_wrong_argument_is_named(arguments, capsys):
    assert study.main(arguments) == 2
    assert re.match("(runs|out)= is|(z=1|x) is not an argument", capsys.readouterr().err)


def test_a_folder_without_runs_is_said(tmp_path, capsys):
    assert study.main([f"runs={tmp_path}", f"out={tmp_path}"]) == 2
    assert "holds no run directory" in capsys.readouterr().err


# ---- the committed study


def test_the_page_of_results_says_what_the_committed_exports_come_to():
    table = docs_verdicts.table()
    assert table in (ROOT / "docs/results.md").read_text(), "python -m docs.verdicts makes the page's table anew"
    assert table.count("\n") >= 2 + 38
