"""Commands given again: cancel, resubmit, and the estimate of a second submission."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sweeps import cancel, local, resubmit, snapshot, state, submission, submit
from sweeps.grid import Sweep
from sweeps.ledger import Ledger
from sweeps.plan import Plan, Planned
from tests.unit.sweeps.conftest import LOCAL, RUNS, submitted, write_status


def test_a_second_cancellation_keeps_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ledger = Ledger(tmp_path / "main")
    submitted(ledger, RUNS)
    with FileLock(ledger.submission_folder("one") / "runner.lock"):  # held by a live runner
        for run in RUNS:
            cancel.main(["study=main", f"paths.outputs={tmp_path}", f"run={run}"])
            assert "ended 1 runs" in capsys.readouterr().out
    assert local.cancelled(ledger.submission_folder("one")) == set(RUNS) == ledger.submissions()[0].cancelled


def test_runs_of_two_submissions_return_to_the_cluster_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, handed = snapshot.current().hash, list[tuple[int, list[str]]]()

    def submit_runs(ledger: Ledger, where: Any, sweep: str, runs: Any, code: Any, array_size: int) -> str:
        handed.append((where.ranks, [run for run, _ in runs]))
        return "new"

    monkeypatch.setattr(submission, "submit_runs", submit_runs)
    ledger = Ledger(tmp_path / "main")
    for place, run in enumerate(RUNS):
        submitted(ledger, [run], f"{place}", replace(LOCAL, ranks=1 + place), code)
    snapshot.take(snapshot.current(), ledger.folder / "code")
    resubmit.main([f"paths.outputs={tmp_path}"])
    assert handed == [(1, RUNS[:1]), (2, RUNS[1:])]
    resubmit.main([f"paths.outputs={tmp_path}", "cluster=local", "cluster.ranks=3"])
    assert handed[2:] == [(3, RUNS)]


def test_the_estimate_counts_each_step_once_on_every_rank(tmp_path: Path):
    """The metrics have `time/step` and its stages, and likewise for an evaluation."""
    folder = write_status(tmp_path / RUNS[0], "finished", 2, 2)
    evaluation = {"time/evaluate": 40.0, "time/sampling": 30.0, "time/grading": 10.0}
    folder.append_metrics({"step": 0, **evaluation})
    folder.append_metrics({"step": 1, "time/step": 100.0, "time/rollout": 60.0, "time/backward": 40.0})
    folder.append_metrics({"step": 2, "time/step": 220.0, "time/rollout": 220.0, **evaluation})
    runs = [Planned(run, (), {}) for run in RUNS]
    sweep = Sweep("s", baseline="mis", claims=[], metric="report only", seeds=[0, 1], grid=[], include=[], exports=[])
    plan = Plan(sweep, tmp_path, 1, runs, [], [], [])
    seen = {one.run: one for one in state.read(Ledger(tmp_path), RUNS).runs}
    where = replace(LOCAL, ranks=4)
    # Two steps of (100 + 260) / 2 s: 360 s a run, on four ranks.
    assert submit.estimate(plan, runs, seen, where) == "about 0.8 CPU-rank-hours (6 min a run)"
    assert submit.estimate(plan, runs[1:], seen, where) == "about 0.4 CPU-rank-hours (6 min a run)"
