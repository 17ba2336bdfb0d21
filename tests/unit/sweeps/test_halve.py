"""Successive halving: which arms are stopped, against an enumeration, and by the command on a real ledger."""

import itertools
import math
from pathlib import Path

import pytest

from sweeps import halve, local, state
from sweeps.halve import stopped
from sweeps.ledger import Ledger
from sweeps.score import score
from tests.unit.sweeps.conftest import submitted, write_attempts, write_status

RUNGS = (10, 20)
# Eight arms: 4 of 8 pass the first rung, 2 of 4 the second.
SCORES = {
    "a": (0.9, 0.1), "b": (0.8, 0.7), "c": (0.7, 0.6), "d": (0.6, 0.9),
    "e": (0.5, 1.0), "f": (0.4, 1.0), "g": (0.3, 1.0), "h": (0.2, 1.0),
}  # fmt: skip


def test_the_better_half_goes_on_at_each_rung():
    found = {one.arm: (one.rung, one.value, one.kept) for one in stopped(SCORES, RUNGS, 0.5)}
    assert found == {
        "e": (10, 0.5, 4), "f": (10, 0.4, 4), "g": (10, 0.3, 4), "h": (10, 0.2, 4),
        "c": (20, 0.6, 2), "a": (20, 0.1, 2),
    }  # fmt: skip


def test_an_arm_is_stopped_only_once_it_is_certain_to_be_out():
    """In every order in which four arms arrive, the stopped ones only grow, and end as with all records at once."""
    arms, whole = ("a", "b", "e", "f"), {one.arm for one in stopped({k: SCORES[k] for k in "abef"}, RUNGS, 0.5)}
    assert whole == {"e", "f", "a"}
    for order in itertools.permutations([(arm, rung) for arm in arms for rung in (0, 1)]):
        known, before = {arm: [math.nan, math.nan] for arm in arms}, set()
        for arm, rung in order:
            known[arm][rung] = SCORES[arm][rung]
            now = {one.arm for one in stopped(known, RUNGS, 0.5)}
            assert before <= now <= whole, order
            before = now
        assert before == whole


@pytest.mark.parametrize(
    ("number", "keep", "left"), [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (9, 1 / 3, 3), (10, 1 / 3, 4), (10, 0.99, 10)]
)
def test_the_share_that_goes_on_is_rounded_up(number: int, keep: float, left: int):
    assert number - len(stopped({f"arm{i:02}": (i / 10,) for i in range(number)}, (5,), keep)) == left


def run_of(folder: Path, step: int, values: dict[int, float]) -> None:
    run = write_status(folder, "running", step, 100)
    for number in range(1, step + 1):
        line = {"step": number} | ({"evaluate/mean@8": values[number]} if number in values else {})
        run.append_metrics(line)


def test_a_score_is_the_largest_or_latest_evaluation_up_to_a_step(tmp_path: Path):
    run_of(tmp_path / "run", 40, {10: 0.3, 20: 0.5, 30: 0.4, 40: 0.9})
    asked = [("mean@8 last", 35), ("mean@8 max", 35), ("mean@8 last", math.inf), ("mean@8 last", 20)]
    assert [score(tmp_path / "run", metric, until=step) for metric, step in asked] == [0.4, 0.5, 0.9, 0.5]
    assert math.isnan(score(tmp_path / "run", "mean@8 last", until=9))
    assert math.isnan(score(tmp_path / "run", "best@8 max"))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Four arms with two seeds on another machine; one seed of the worst arm has not reached the rung."""
    ledger = Ledger(tmp_path / "main")
    runs = []
    for arm, value in {"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.1}.items():
        for seed in (0, 1):
            runs.append(f"{arm}-01234567-s{seed}")
            late = arm == "d" and seed == 1
            run_of(ledger.study / runs[-1], 9 if late else 15, {} if late else {10: value + seed / 100})
    folder = submitted(ledger, runs)
    for run in runs:
        write_attempts(folder, run, [{"event": "start"}])
    return ledger


def test_the_command_cancels_all_seeds_of_an_arm_that_is_out_and_no_other(ledger: Ledger, capsys):
    from filelock import FileLock

    given = ["study=main", f"paths.outputs={ledger.study.parent}", "rungs=10", "metric=mean@8 last"]
    with FileLock(ledger.submission_folder("one") / "runner.lock"):  # held by a live runner
        halve.main([*given, "--dry-run"])
        assert "would end 2 runs, 8 go on" in capsys.readouterr().out
        assert not ledger.submissions()[0].cancelled
        halve.main(given)
    said = capsys.readouterr().out
    assert "c-01234567-s0: mean@8 last 0.3050 at step 10, not among the 2 best" in said
    assert "ended 2 runs, 6 go on" in said
    assert ledger.submissions()[0].cancelled == {"c-01234567-s0", "c-01234567-s1"}
    assert local.cancelled(ledger.submission_folder("one")) == ledger.submissions()[0].cancelled
    assert {one.state for one in state.read(ledger).runs if one.name == "c"} == {"cancelled"}


def test_an_arm_waits_for_all_of_its_seeds_to_reach_the_rung(tmp_path: Path, capsys):
    for seed in (0, 1):
        run_of(tmp_path / "main" / f"a-01234567-s{seed}", 12, {5: 0.9, 10: 0.9})
    run_of(tmp_path / "main" / "b-01234567-s0", 12, {5: 0.1, 10: 0.9})
    run_of(tmp_path / "main" / "b-01234567-s1", 9, {5: 0.1})
    given = ["study=main", f"paths.outputs={tmp_path}", "rungs=10", "metric=mean@8 last", "--dry-run"]
    halve.main(given)
    assert "would end 0 runs, 4 go on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "study: must be given, as in study=NAME rungs=30,90"),
        (["study=main", "metric=mean@8 last"], "rungs: must be given"),
        (["study=main", "rungs=30,10", "metric=mean@8 last"], "rungs=30,10: should be increasing steps"),
        (["study=main", "rungs=ten", "metric=mean@8 last"], "rungs=ten: should be increasing steps"),
        (["study=main", "rungs=0", "metric=mean@8 last"], "rungs=0: should be increasing steps"),
        (["study=main", "rungs=10", "metric=accuracy"], "metric=accuracy: is not a metric; give mean@K"),
        (["study=main", "rungs=10", "metric=mean@8 last", "keep=1"], "keep=1: should be a share between 0 and 1"),
        (["study=main", "rungs=10", "metric=mean@8 last", "keep=1/0"], "keep=1/0: should be a share"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(refused, arguments: list[str], said: str, tmp_path: Path):
    assert said in refused(halve, *arguments, f"paths.outputs={tmp_path}")
