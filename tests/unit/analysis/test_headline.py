import json
from dataclasses import replace

import pytest

from analysis.contrasts import Bootstrap
from analysis.headline import Headline, headline
from analysis.load import load
from analysis.results import analyse
from tests.unit.analysis.fake_runs import Fake, write_run

SMALL = Fake(num_steps=4, every=2, k=4, benchmarks={"x": 40})


def told(root, *, baseline: str = "default") -> Headline:
    return headline(analyse(load(root), baseline=baseline, bootstrap=Bootstrap(count=200, seed=0)))


def test_demo_is_a_climb_to_the_teacher(demo_runs):
    head = told(demo_runs)
    assert head.title.startswith("The student climbed from 3") and head.title.endswith("\u00a0%")
    assert [tile.label for tile in head.tiles] == ["Before", "Distilled", "Teacher"]
    assert "teacher-large, of which the student reaches 9" in head.tiles[2].note
    assert head.progress is not None and head.progress.before < head.progress.after < (head.progress.teacher or 0)
    assert head.ran == "study demo · 11 finished runs of 7 configs · 2 unfinished · arithmetic: 60 problems × 8 answers"


def test_baseline_is_told_of_even_if_another_scored_higher(tmp_path):
    write_run(tmp_path, SMALL)
    write_run(tmp_path, replace(SMALL, name="higher", final=0.99))
    assert "default" in told(tmp_path).tiles[1].note
    both = told(tmp_path, baseline="nobody")
    assert both.title.startswith("2 configs score ") and [tile.label for tile in both.tiles] == ["Lowest", "Highest"]
    assert "default" in both.tiles[0].note and both.progress is None
    assert "higher: the best of 2 on these problems, so optimistic" in both.tiles[1].note
    assert both.title.endswith(both.tiles[1].value)


def test_the_only_finished_student_is_told_of_without_a_baseline_and_one_asked_otherwise_is_not(tmp_path):
    write_run(tmp_path, replace(SMALL, name="one"))
    write_run(tmp_path, replace(SMALL, name="unfinished", state="running", step=2, final=0.99))
    assert "one" in told(tmp_path).tiles[1].note
    write_run(tmp_path, replace(SMALL, name="two", final=0.5))
    write_run(tmp_path, replace(SMALL, name="three", final=0.5, seed=1))
    write_run(tmp_path, replace(SMALL, name="fewer", final=0.99, benchmarks={"x": 10}))
    head = told(tmp_path)
    assert head.title.startswith("3 configs score ") and "fewer" not in head.tiles[1].note


@pytest.mark.parametrize(("final", "verb"), [(0.9, "climbed from"), (0.05, "fell from")])
def test_direction(tmp_path, final, verb):
    write_run(tmp_path, replace(SMALL, final=final))
    assert told(tmp_path).title.startswith(f"The student {verb} ")


def test_no_change(tmp_path):
    run = write_run(tmp_path, SMALL)
    for step in (2, 4):
        run.write_samples(step, run.samples(0))
    length = run.metrics()[0]["evaluate/num_tokens"]
    lines = [line | {"evaluate/num_tokens": length} for line in run.metrics()]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told(tmp_path).title.startswith("The student stayed at ")


def test_unfinished_run_is_told_of_as_such(tmp_path):
    write_run(tmp_path, replace(SMALL, state="running", step=2))
    head = told(tmp_path)
    assert head.title.endswith(" so far") and head.tiles[1].label == "So far"


def test_without_a_first_evaluation_only_the_end_is_told(tmp_path):
    run = write_run(tmp_path, SMALL)
    run.samples_file(0).unlink()
    head = told(tmp_path)
    assert head.title.startswith("default scores ") and head.progress is None
    assert [tile.label for tile in head.tiles] == ["Distilled"]


def test_teacher_of_other_benchmarks_is_no_yardstick(tmp_path):
    write_run(tmp_path, SMALL)
    write_run(tmp_path, replace(SMALL, name="teacher", benchmarks={"y": 40}))
    assert [tile.label for tile in told(tmp_path).tiles] == ["Before", "Distilled"]


def test_teacher_that_scores_nothing_divides_nothing(tmp_path):
    write_run(tmp_path, SMALL)
    run = write_run(tmp_path, replace(SMALL, name="teacher"))
    run.write_samples(4, [replace(sample, correct=False) for sample in run.samples(4)])
    assert told(tmp_path).tiles[2].note == "mean@4 of teacher"


def test_nothing_evaluated(tmp_path):
    run = write_run(tmp_path, replace(SMALL, state="pending", step=0))
    run.samples_file(0).unlink()
    head = told(tmp_path)
    assert head.title == "No student has been evaluated yet" and head.tiles == []
    assert head.ran == "study demo · 0 finished runs of 0 configs · 1 unfinished"
