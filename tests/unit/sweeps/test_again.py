"""What a study's commands do when they are given again: nothing of the first time is forgotten."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from opd.records.run_dir import RunDir, Status
from sweeps import cancel, local, resubmit, snapshot, state, submit
from sweeps.cluster import Local
from sweeps.grid import Sweep
from sweeps.ledger import Ledger, write_submission
from sweeps.plan import Plan, Planned

RUNS = ["mis-01234567-s0", "mis-01234567-s1"]
THEN = "2026-01-01T00:00:00+00:00"


def submitted(book: Ledger, name: str, runs: list[str], where: Local, code: str = "c") -> None:
    write_submission(book.submission_folder(name), where.__dict__, runs, [{} for _ in runs], code)
    book.append("intent", submission=name, sweep="s", cluster="local", code=code, runs=runs, portion=len(runs))
    book.append("submitted", submission=name, jobs=[], pid=1, host="elsewhere")


def test_a_second_cancellation_keeps_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    book = Ledger(tmp_path / "main")
    submitted(book, "one", RUNS, Local("local", max_parallel=1, ranks=1, max_retries=0))
    with FileLock(book.submission_folder("one") / "runner.lock"):  # as a runner that lives
        for run in RUNS:
            cancel.main(["study=main", f"paths.outputs={tmp_path}", f"run={run}"])
            assert "ended 1 runs" in capsys.readouterr().out
    assert local.cancelled(book.submission_folder("one")) == set(RUNS) == book.submissions()[0].cancelled


def test_runs_of_two_submissions_go_each_where_its_own_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, handed = snapshot.current().hash, list[tuple[int, list[str]]]()

    def hand_over(book: Ledger, where: Any, sweep: str, runs: Any, code: Any, largest: int) -> str:
        handed.append((where.ranks, [run for run, _ in runs]))
        return "new"

    monkeypatch.setattr(resubmit, "hand_over", hand_over)
    book = Ledger(tmp_path / "main")
    for place, run in enumerate(RUNS):
        submitted(book, f"{place}", [run], Local("local", max_parallel=1, ranks=1 + place, max_retries=0), code)
    snapshot.take(snapshot.current(), book.folder / "code")
    resubmit.main([f"paths.outputs={tmp_path}"])
    assert handed == [(1, RUNS[:1]), (2, RUNS[1:])]
    resubmit.main([f"paths.outputs={tmp_path}", "cluster=local", "cluster.ranks=3"])
    assert handed[2:] == [(3, RUNS)]


def test_hours_are_estimated_from_steps_each_counted_once_on_every_rank(tmp_path: Path):
    """`time/step` is all stages of a step and stands beside them; so do an evaluation and its stages."""
    folder = RunDir(tmp_path / RUNS[0])
    folder.path.mkdir()
    folder.write_status(Status("finished", 2, 2, None, THEN, THEN, "elsewhere", None, 1))
    evaluation = {"time/evaluate": 40.0, "time/sampling": 30.0, "time/grading": 10.0}
    folder.append_metrics({"step": 0, **evaluation})
    folder.append_metrics({"step": 1, "time/step": 100.0, "time/rollout": 60.0, "time/backward": 40.0})
    folder.append_metrics({"step": 2, "time/step": 220.0, "time/rollout": 220.0, **evaluation})
    runs = [Planned(run, (), {}) for run in RUNS]
    sweep = Sweep("s", baseline="mis", claims=[], metric="report only", seeds=[0, 1], grid=[], include=[])
    plan = Plan(sweep, tmp_path, 1, runs, [], [], [])
    seen = {one.run: one for one in state.look(Ledger(tmp_path), RUNS).runs}
    where = Local("local", max_parallel=1, ranks=4, max_retries=0)
    # Two steps of (100 + 260) / 2 s: 360 s a run, on four ranks.
    assert submit.estimate(plan, runs, seen, where) == "about 0.8 CPU-rank-hours (6 min a run)"
    assert submit.estimate(plan, runs[1:], seen, where) == "about 0.4 CPU-rank-hours (6 min a run)"
