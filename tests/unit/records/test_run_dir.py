import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from opd.config.identity import as_today
from opd.records.files import RecordError, json_line, now, read_lines, write_atomic
from opd.records.run_dir import RunDir, Sample, Status, changed_keys, find_runs

STATUS = Status("running", 3, 10, None, now(), now(), "node", None, 1)
SAMPLES = [
    Sample("aime24", "1", 0, True, 1.0, "204", "204", 512, False),
    Sample("aime24", "1", 1, False, 0.25, "204", None, 8192, True),
]


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "study" / "default-1a2b3c4d-s0")
    run.write_config("name: default\nseed: 0\noptim: {lr: 1.0e-5, betas: [0.9, 0.95]}\n")
    run.write_status(STATUS)
    return run


def test_what_is_written_is_read(run):
    run.write_manifest({"run_id": "x"})
    run.append_metrics({"step": 1, "loss": 0.5})
    run.append_metrics({"step": 2, "loss": math.nan, "grad_norm": math.inf})
    run.write_samples(2, SAMPLES)
    assert run.config() == as_today({"name": "default", "seed": 0, "optim": {"lr": 1e-5, "betas": [0.9, 0.95]}})
    assert run.status() == STATUS
    assert run.manifest() == {"run_id": "x"}
    assert run.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "grad_norm": None}]
    assert run.samples(2) == SAMPLES


def test_status_update_keeps_the_rest(run):
    run.update_status(state="finished", step=10)
    assert (run.status().state, run.status().step, run.status().host) == ("finished", 10, "node")


def test_run_without_a_step_has_no_metrics_and_no_evaluation(run):
    assert run.metrics() == []
    assert run.evaluations() == {}


def test_torn_last_line_is_dropped_and_nothing_else(run):
    run.append_metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", "[1]", "", "\x00", '{"step": 1}{'])
def test_bad_line_is_named_with_its_number(run, line):
    run.metrics_file.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: "):
        run.metrics()


def test_line_that_is_not_utf8_is_named(run):
    run.metrics_file.write_bytes(b'{"step": 1, "note": "\xff"}\n')
    with pytest.raises(RecordError, match="line 1"):
        run.metrics()


def test_sample_without_a_field_is_named(run):
    line = {"benchmark": "a", "problem_id": "1"}
    write_atomic(run.samples_file(5), json.dumps(line) + "\n")
    with pytest.raises(RecordError, match=r"step_000005\.jsonl, line 1: has no 'sample'"):
        run.samples(5)


def test_a_record_from_before_there_were_scores_is_read(run):
    lines = [{key: value for key, value in vars(sample).items() if key != "score"} for sample in SAMPLES]
    write_atomic(run.samples_file(5), "".join(json.dumps(line) + "\n" for line in lines))
    assert [sample.score for sample in run.samples(5)] == [1.0, 0.0]


@pytest.mark.parametrize("score", ["NaN", "1.5", "-0.1", "null", '"1"', "true", "1e999", "1" * 400, "[]"])
def test_a_score_that_is_none_is_named(run, score):
    line = json.dumps(vars(SAMPLES[0])).replace('"score": 1.0', f'"score": {score}')
    write_atomic(run.samples_file(5), line + "\n")
    with pytest.raises(RecordError, match=r"step_000005\.jsonl: score is .*, not a number from 0 to 1"):
        run.samples(5)


@pytest.mark.parametrize("score", [1.01, -0.01, math.nan])
def test_no_grader_gives_a_score_beyond_right_and_wrong(score):
    with pytest.raises(ValueError, match=f"score is {score}, not a number from 0 to 1"):
        replace(SAMPLES[0], score=score)


def test_a_number_of_too_many_digits_is_a_bad_line_as_any_other(run):
    write_atomic(run.metrics_file, '{"step": 1}\n{"step": ' + "1" * 5000 + "}\n")
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: "):
        run.metrics()
    write_atomic(run.status_file, '{"step": ' + "1" * 5000 + "}")
    with pytest.raises(RecordError, match=r"status\.json: Exceeds the limit"):
        run.status()


def test_evaluations_are_in_order_of_steps_and_foreign_files_are_no_evaluations(run):
    for step in (20, 1_000_000, 0):
        run.write_samples(step, SAMPLES)
    (run.path / "evaluate" / "step_last.jsonl").touch()
    (run.path / "evaluate" / "step_000020.jsonl.part").touch()
    assert list(run.evaluations()) == [0, 20, 1_000_000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "is not a JSON object"),
        ('{"state": "running"}', "has no 'step'"),
        (json.dumps({**vars(STATUS), "state": "happy"}), "state is 'happy'; input should be 'pending', 'running'"),
    ],
)
def test_bad_status_is_named(run, content, reason):
    run.status_file.write_text(content)
    with pytest.raises(RecordError, match=r"status\.json: ") as raised:
        run.status()
    assert reason in str(raised.value)


@pytest.mark.parametrize("content", ["- 1\n", "a: [\n", "\x00"])
def test_bad_config_is_named(run, content):
    run.config_file.write_text(content)
    with pytest.raises(RecordError, match=r"config\.yaml: "):
        run.config()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"status\.json: No such file"):
        RunDir(tmp_path).status()


def test_rewind_forgets_later_steps_evaluations_and_a_torn_line(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
        run.write_samples(step, SAMPLES)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4')
    run.rewind(2)
    run.append_metrics({"step": 3, "again": True})
    assert run.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert list(run.evaluations()) == [1, 2]


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "status.json"
    write_atomic(file, "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["status.json"]


def test_reader_of_the_old_file_never_sees_part_of_the_new_one(tmp_path):
    file = tmp_path / "status.json"
    write_atomic(file, "old")
    with file.open() as reader:
        write_atomic(file, "new and longer")
        assert reader.read() == "old"
    assert file.read_text() == "new and longer"


def test_find_runs_is_sorted_and_takes_either_file(tmp_path):
    for name, file in (("b/run", "config.yaml"), ("a", "status.json"), ("c", "other.yaml"), ("b", "status.json")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).touch()
    assert [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["a", "b", "b/run"]
    assert find_runs(tmp_path / "nowhere") == []


def test_what_wandb_keeps_inside_a_run_is_no_run(tmp_path):
    for name in ("study/run", "study/run/wandb/offline-run-1/files", "wandb/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    assert [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["study/run", "wandb/run"]


def test_changed_keys_are_dotted_and_sorted():
    old = {"optim": {"lr": 1, "betas": [1, 2]}, "seed": 0, "gone": 1}
    new = {"optim": {"lr": 2, "betas": [1, 3]}, "seed": 0, "added": {"x": 1}}
    assert changed_keys(old, new) == ["added", "gone", "optim.betas", "optim.lr"]
    assert changed_keys(old, old) == []


def test_json_line_writes_null_for_what_json_has_not_and_keeps_the_rest():
    line = json_line({"a": math.nan, "b": -math.inf, "c": 0.0, "d": "nan", "e": 3})
    assert line == '{"a": null, "b": null, "c": 0.0, "d": "nan", "e": 3}\n'


def test_reading_lines_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(RecordError, match=r"gone\.jsonl: No such file"):
        list(read_lines(tmp_path / "gone.jsonl"))


def test_records_import_no_torch():
    code = "import sys, opd.records.run_dir, opd.grading.scores; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
