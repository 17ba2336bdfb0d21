import csv
import io
import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from analysis import tables
from analysis.contrasts import Bootstrap
from analysis.csv_frames import csv_frames
from analysis.evaluation import AVERAGE
from analysis.load import load
from analysis.published_tables import ranking_table
from analysis.results import Results, analyse
from analysis.table import Field, Table, frame_csv
from tests.unit.analysis.fake_runs import Fake, write_run

BOOTSTRAP = Bootstrap(count=200, seed=0)


def results(root, *, baseline: str = "default") -> Results:
    return analyse(load(root), baseline=baseline, bootstrap=BOOTSTRAP)


@pytest.fixture(scope="module")
def demo(demo_runs) -> Results:
    return results(demo_runs)


def rows(table: Table) -> list[dict[str, str]]:
    return [
        {field.label: f"{cell.text} {cell.interval}".strip() for field, cell in zip(table.fields, cells, strict=True)}
        for _, cells in table.rows()
    ]


# ---- cells


def table(frame: dict, *fields: Field) -> Table:
    return Table("name", "Title", "note", fields, pd.DataFrame({"arm": None, **frame}, dtype=object))


def test_cells_are_rounded_and_a_missing_one_is_a_dash():
    shown = table(
        {
            "score": [12.345, math.nan, None],
            "score_low": [11.04, math.nan, None],
            "score_high": [13.06, 3.0, None],
            "gain": [-0.04, 1.25, -3.0],
            "count": [1234567, None, 0],
            "length": [99.96, 250.4, math.nan],
        },
        Field("score", "Score", "percent", interval=True),
        Field("gain", "Δ", "points"),
        Field("count", "Count", "number"),
        Field("length", "Length", "tokens"),
    )
    assert [[f"{cell.text} {cell.interval}".strip() for cell in cells] for _, cells in shown.rows()] == [
        ["12.3 [11.0, 13.1]", "0.0", "1234567", "100.0"],
        ["–", "+1.2", "–", "250"],
        ["–", "−3.0", "0", "–"],
    ]
    assert [cells[0].order for _, cells in shown.rows()] == [12.345, None, None]


def test_csv_has_the_ends_of_intervals_empty_cells_and_no_formula():
    shown = table(
        {"name": ["=1+1", "plain", None], "score": [1 / 3, 2.0, math.nan], "score_low": 0.0, "score_high": 1.0},
        Field("name", "Name"),
        Field("score", "Score", "percent", interval=True),
    )
    assert shown.csv() == 'name,score,score_low,score_high\n"\'=1+1",0.333333,0,1\n"plain",2,0,1\n,,0,1\n'


def test_csv_of_a_frame_writes_no_negative_zero_and_no_numpy():
    frame = pd.DataFrame({"value": [-0.0, 1e-9, 12.3456789], "flag": [True, False, True]})
    assert frame_csv(frame) == "value,flag\n0,true\n0,false\n12.345679,true\n"


@given(st.lists(st.one_of(st.floats(), st.sampled_from([2**53 / 1e6, 1.0000005, -0.0, math.nan])), min_size=1))
def test_csv_reads_back_as_the_numbers_to_six_decimals(values):
    for frame in (
        pd.DataFrame({"first": 0, "value": values}),
        pd.DataFrame({"first": 0, "value": values}, dtype=object),
    ):
        back = pd.read_csv(io.StringIO(frame_csv(frame)))["value"]
        assert back.to_numpy(float) == pytest.approx(values, rel=0, abs=0.51e-6, nan_ok=True)


def test_csv_of_names_escapes_each_and_leaves_missing_ones_empty():
    names = ["=1+1", 'a, "b"', "plain", "plain"]
    assert frame_csv(pd.DataFrame({"x": 1, "name": names})).splitlines() == [
        "x,name", '1,"\'=1+1"', '1,"a, ""b"""', '1,"plain"', '1,"plain"'
    ]  # fmt: skip
    missing = pd.DataFrame({"x": 1, "name": [*names, None]})
    assert frame_csv(missing).splitlines()[1:] == [*frame_csv(missing[:4]).splitlines()[1:], "1,"]


def test_markdown_table_keeps_its_columns_whatever_a_cell_holds():
    shown = table({"name": ["a|b\\|c", "x"]}, Field("name", "Name"))
    lines = shown.markdown().splitlines()
    assert lines[2] == r"| a\|b\\\|c |"
    assert len(lines) == 4


# ---- the report's tables


def test_summary_of_the_demo(demo):
    shown = {row["Run"]: row for row in rows(tables.summary(demo))}
    assert next(iter(shown)) == "default" and list(shown)[-3:] == ["teacher-large", "teacher-medium", "teacher-small"]
    assert shown["default"]["Seeds"] == "3" and shown["default"]["Δ mean@8"] == "–"
    assert shown["kl_70_100"]["State"] == "running 57/100" and shown["kl_70_100"]["Δ mean@8"] == "–"
    assert shown["naive"]["State"] == "failed 83/100"
    assert shown["hard_switch"]["Δ mean@8"].startswith("+")
    assert shown["low_lr"]["Δ mean@8"].startswith("−")
    assert shown["teacher-large"]["Before"] == "–"  # it was not trained


def test_summary_is_the_mean_over_seeds_of_the_samples(demo):
    last = demo.records.scores[demo.records.scores["step"] == 100]
    own = last[last["run"].str.contains("default-")]
    (row,) = (row for row in rows(tables.summary(demo)) if row["Run"] == "default")
    assert row["mean@8"].startswith(f"{100 * own['mean'].mean():.1f} [")


def test_labels_have_the_real_k_and_the_letter_where_there_are_several(tmp_path):
    for k in (4, 2):
        write_run(tmp_path, Fake(name=f"k{k}", k=k, num_steps=2, every=2, benchmarks={"x": 3}))
        labels = [field.label for field in tables.scores(results(tmp_path)).fields]
        assert ("mean@4" if k == 4 else "mean@k") in labels and ("best@4" if k == 4 else "best@k") in labels
    assert [row["k"] for row in rows(tables.scores(results(tmp_path)))] == ["2", "4"]


def test_scores_show_the_average_first_and_only_over_several_benchmarks(tmp_path):
    write_run(tmp_path, Fake(name="one", num_steps=2, every=2, benchmarks={"x": 3}))
    write_run(tmp_path, Fake(name="two", num_steps=2, every=2, benchmarks={"x": 3, "y": 4}))
    shown = [(row["Run"], row["Benchmark"]) for row in rows(tables.scores(results(tmp_path)))]
    assert shown == [("one", "x"), ("two", AVERAGE), ("two", "x"), ("two", "y")]


def test_runs_table_has_every_run_its_state_and_the_first_line_of_its_error(demo):
    shown = rows(tables.runs(demo))
    assert len(shown) == len(demo.records.runs)
    (failed,) = (row for row in shown if row["Run"] == "naive")
    assert (failed["State"], failed["Step"], failed["Steps"]) == ("failed", "83", "100")
    assert failed["Error"] == "ValueError: loss is not finite"


def test_answers_are_those_of_the_last_evaluation_with_problem_response_and_verdict(demo):
    shown = rows(tables.answers(demo))
    assert {row["Step"] for row in shown if row["Run"] == "kl_70_100"} == {"50"}
    assert {row["Verdict"] for row in shown} == {"✓ correct", "✗ wrong"}
    for row in shown:
        assert (row["Verdict"] == "✓ correct") == (row["Its answer"] == row["Right answer"])
        assert row["Problem"] == f"So, what is {row['Right answer']}?"
        assert row["Response"] == f"So ↵ it is {row['Its answer'].replace('–', 'None')}"


def test_answers_without_texts_have_no_columns_for_them(demo):
    frame = demo.records.answers.assign(question=None, response=None)
    without = tables.answers(replace(demo, records=replace(demo.records, answers=frame)))
    assert not {"Problem", "Response"} & {field.label for field in without.fields}


def test_state_says_what_a_finished_run_lacks(tmp_path):
    bare = write_run(tmp_path, Fake(name="bare", num_steps=2, every=2))
    half = write_run(tmp_path, Fake(name="half", num_steps=4, every=2))
    for file in (*bare.evaluations().values(), half.samples_file(4)):
        file.unlink()
    states = {row["Run"]: row["State"] for row in rows(tables.summary(results(tmp_path)))}
    assert states == {"bare": "finished, no evaluation", "half": "finished, no last evaluation"}


def test_everything_left_out_is_listed_with_a_reason(all_runs):
    shown = {(row["Run"], row["Left out"]): row["Reason"] for row in rows(tables.excluded(results(all_runs)))}
    assert all(shown.values())
    assert shown["foreign", "the run"] == "status.json: No such file or directory"
    assert shown["empty", "the run"].startswith("config.yaml: ")
    assert shown["demo/copy-of-default", "the run"].startswith("has the name, config and seed of demo/default-")
    assert sum(run.startswith("hostile/") for run, _ in shown) == 6


def test_the_summary_marks_what_was_asked_otherwise_and_says_what_differs(tmp_path):
    small = Fake(num_steps=2, every=2, k=4, benchmarks={"x": 20, "y": 5})
    write_run(tmp_path, small)
    write_run(tmp_path, replace(small, name="alike", config={"gamma": 0.5}))
    write_run(tmp_path, replace(small, name="fewer", benchmarks={"x": 10, "y": 5}))
    write_run(tmp_path, replace(small, name="other", k=2, benchmarks={"x": 20, "z": 5}))
    for seed, number in ((0, 20), (1, 10)):
        write_run(tmp_path, replace(small, name="uneven", seed=seed, benchmarks={"x": number, "y": 5}))
    shown = {row["Run"]: row for row in rows(tables.summary(results(tmp_path)))}
    assert {name: row["† Asked"] for name, row in shown.items()} == {
        "default": "–", "alike": "–",
        "fewer †": "x: 10 problems, not 20",
        "other †": "on z; not on y; x: 2 answers each, not 4",
        "uneven †": "its runs were not asked alike",
    }  # fmt: skip
    assert shown["alike"]["Differs in"] == "gamma=0.5"
    ranked = {row["Run"] for row in rows(ranking_table(results(tmp_path)))}
    assert ranked == {"default", "alike"}
    assert "Every run has one seed, so that these ranks say nothing" in ranking_table(results(tmp_path)).note


def test_missing_baseline_is_named_once_and_leaves_out_the_differences(demo_runs):
    found = results(demo_runs, baseline="nobody")
    assert found.differences.empty and found.baseline is None
    assert not any("Δ" in field.label for field in tables.summary(found).fields)
    reasons = list(found.excluded.loc[found.excluded["left_out"] == "differences", "reason"])
    assert reasons == ["no finished and evaluated run is named nobody; choose another: baseline=NAME"]


def test_exports_say_what_the_tables_say(demo):
    found = csv_frames(demo, alpha=0.15)
    long = found["scores_long"].set_index(["label", "benchmark", "score", "which"])["value"]
    for row in tables.scores(demo).frame.to_dict("records"):
        assert long[row["label"], row["benchmark"], "mean", "last"] == pytest.approx(row["mean_last"], nan_ok=True)
    curves = found["learning_curves"]
    one = curves[(curves["run"] == curves["run"].iloc[0]) & (curves["benchmark"] == AVERAGE)]
    assert one["mean_smoothed"].iloc[1] == pytest.approx(0.85 * one["mean"].iloc[0] + 0.15 * one["mean"].iloc[1])
    for frame in found.values():
        assert next(csv.reader(io.StringIO(frame_csv(frame)))) == list(frame.columns)
