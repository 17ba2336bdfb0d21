"""An evaluation that is interrupted at any moment goes on from its finished answers, and the run ends as an unbroken
one: records, answers, weights and the checkpoints that stay, bit for bit.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from opd import evaluate
from opd.records.answers import KeptAnswers
from opd.records.run_dir import RunDir
from opd.step.benchmarks import _answer
from opd.train import run_dir, train
from tests.forks import forked, run_ranks
from tests.integration import child
from tests.integration.conftest import composed
from tests.integration.test_ranks import free_port
from tests.integration.test_resume import content

# Batches of one problem, three to an evaluation, of which there are three: at steps 0, 2 and 4. The best is the first.
BATCHES = ["evaluate.batch_answers=2", "checkpoint.every=0", "checkpoint.keep=1"]


def after_batch(number: int, happens: Callable[[], object]) -> Callable[[], None]:
    """Lets something happen when that many batches were kept by this process; returns what undoes it."""
    write, calls = KeptAnswers.write, []

    def noted(self, batch, answered):
        write(self, batch, answered)
        calls.append(batch)
        if len(calls) == number:
            happens()

    KeptAnswers.write = noted
    return lambda: setattr(KeptAnswers, "write", write)


def told(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def unbroken(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    config = composed([*small_run, *BATCHES, f"paths.outputs={tmp_path_factory.mktemp('unbroken')}"])
    assert train(config).state == "finished"
    whole = content(run_dir(config))
    assert {name.split("/")[1] for name in whole if name.startswith("checkpoints")} == {
        "step_000002", "step_000004", "final",
    }  # fmt: skip
    return whole


@pytest.fixture
def config(small_run: list[str], tmp_path: Path):
    return composed([*small_run, *BATCHES, f"paths.outputs={tmp_path}"])


# (batches finished before the signal, the step whose checkpoint there is then, finished batches of its evaluation)
APART = pytest.mark.apart
MOMENTS = [
    pytest.param(1, 0, 1, marks=APART),
    (2, 0, 2),
    (4, 2, 1),
    pytest.param(5, 2, 2, marks=APART),
    pytest.param(7, 4, 1, marks=APART),
    (8, 4, 2),
]


@pytest.mark.parametrize(("batches", "step", "kept"), MOMENTS)
def test_a_signal_ends_an_evaluation_between_batches_and_nothing_is_lost(
    batches: int, step: int, kept: int, config, unbroken, capfd
):
    folder, undo = run_dir(config), after_batch(batches, told(signal.SIGTERM))
    try:
        assert train(config).state == "preempted"
    finally:
        undo()
    assert "SIGTERM: stopping after this step, or this batch of an evaluation" in capfd.readouterr().err
    assert len([*folder.answers_folder(step).iterdir()]) == kept
    assert max([0, *(int(each.name[5:]) for each in folder.checkpoints.glob("step_*"))]) == step
    assert folder.status().step == max(0, step - 1) and len(folder.metrics()) == step
    assert train(config).state == "finished"
    assert content(folder) == unbroken and not folder.answers_folder(step).exists()


def test_an_evaluation_whose_last_batch_is_done_is_recorded_before_the_run_leaves(config, unbroken):
    undo = after_batch(6, told(signal.SIGHUP))
    try:
        status = train(config)
    finally:
        undo()
    assert (status.state, status.step) == ("preempted", 3)
    assert train(config).state == "finished" and content(run_dir(config)) == unbroken


def test_a_run_that_finishes_one_batch_an_attempt_comes_to_the_same_end(config, unbroken):
    states = []
    while "finished" not in states:
        undo = after_batch(1, told(signal.SIGUSR2))
        try:
            states.append(train(config).state)
        finally:
            undo()
        assert len(states) < 15
    assert content(run_dir(config)) == unbroken and len(states) > 6


def killed_run(overrides: list[str], batches: int) -> None:
    after_batch(batches, told(signal.SIGKILL))
    train(composed(overrides))


@pytest.mark.parametrize("batches", [pytest.param(2, marks=APART), 5, pytest.param(9, marks=APART)])
def test_a_run_killed_in_an_evaluation_goes_on_from_its_finished_answers(
    batches: int, unbroken, small_run: list[str], tmp_path: Path, monkeypatch
):
    given = [*small_run, *BATCHES, "checkpoint.asynchronous=false", f"paths.outputs={tmp_path}"]
    process = forked(killed_run, given, batches)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    asked, config = count_asked(monkeypatch), composed(given)
    assert train(config).state == "finished" and len(asked) == 9 - batches
    assert content(run_dir(config)) == unbroken


def killed_before_a_checkpoint(overrides: list[str]) -> None:
    from opd.step import loop

    loop.step = lambda run, number: os.kill(os.getpid(), signal.SIGKILL)
    train(composed(overrides))


def test_a_run_killed_before_its_first_checkpoint_does_not_ask_the_first_evaluation_again(
    config, unbroken, small_run: list[str], tmp_path: Path, monkeypatch
):
    process = forked(killed_before_a_checkpoint, [*small_run, *BATCHES, f"paths.outputs={tmp_path}"])
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(run_dir(config).metrics()) == 1
    asked = count_asked(monkeypatch)
    assert train(config).state == "finished" and len(asked) == 6
    assert content(run_dir(config)) == unbroken
    assert not [*run_dir(config).path.glob("evaluate/*.batches")]


def count_asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The problems of each batch that is sampled from now on."""
    asked = []

    def noted(sampler, benchmark, prompts, *given, **knobs):
        asked.append([prompt.id for prompt in prompts])
        return _answer(sampler, benchmark, prompts, *given, **knobs)

    monkeypatch.setattr("opd.step.benchmarks._answer", noted)
    return asked


def test_a_signal_during_a_step_comes_before_the_evaluation_that_is_due(config, unbroken, monkeypatch):
    from opd.step import loop

    step = loop.step

    def signalled(run, number):
        if number == 2:
            told(signal.SIGTERM)()
        return step(run, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", signalled)
        assert train(config).state == "preempted"
    folder = run_dir(config)
    assert (folder.checkpoints / "step_000002").exists() and not folder.samples_file(2).exists()
    assert train(config).state == "finished" and content(folder) == unbroken


def test_answers_to_problems_that_were_exchanged_are_not_gone_on_from(
    small_run: list[str], tmp_path: Path, monkeypatch
):
    """At step 0 a run may go on with other contents than it began with: nothing has been trained."""
    file, knobs = tmp_path / "own.jsonl", ["prompts.suffix=''", "evaluate.benchmarks=[aime24]"]
    source = ["+benchmark@evaluate.sources.aime24=aime24", f"evaluate.sources.aime24.file={file}"]
    config = composed([*small_run, *BATCHES, *source, *knobs, f"paths.outputs={tmp_path}"])

    def write(problem: str) -> None:
        rows = [{"id": f"p{at}", "problem": problem, "answer": "2"} for at in range(3)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("1+1=")
    undo = after_batch(2, told(signal.SIGTERM))
    try:
        assert train(config).state == "preempted"
    finally:
        undo()
    write("4-2=")
    asked = count_asked(monkeypatch)
    assert train(config).state == "finished" and asked[:3] == [["p0"], ["p1"], ["p2"]]


def signalled_rank(
    rank: int, size: int, port: int, arguments: list[str], folder: Path, signalled: int, batch: int
) -> None:
    """A rank of the command; one of them gets a signal before a batch."""
    from opd.step.run import Run

    calls, asked = [], Run.asked

    def noted(self, *report):
        calls.append(report)
        if rank == signalled and len(calls) == batch:
            told(signal.SIGTERM)()
        asked(self, *report)

    Run.asked = noted
    child.rank(rank, size, port, arguments, folder)


@APART
def test_two_ranks_leave_at_the_same_batch_whichever_of_them_is_told(small_run: list[str], tmp_path: Path):
    def on_two(outputs: Path, signalled: int = -1, batch: int = 0) -> RunDir:
        given = [*small_run, "evaluate.batch_answers=2", "num_steps=2", f"paths.outputs={outputs}"]
        outputs.mkdir(exist_ok=True)
        try:
            run_ranks(signalled_rank, (2, free_port(), given, outputs, signalled, batch), 2)
        except Exception as error:
            assert "exit code 75" in str(error), error
        return RunDir(next((outputs / "main").iterdir()))

    whole = on_two(tmp_path / "whole")
    assert whole.status().state == "finished"
    # Two batches an evaluation: the signal comes before the second one of step 2.
    stopped = on_two(tmp_path / "stopped", signalled=1, batch=4)
    assert stopped.status().state == "preempted" and len([*stopped.answers_folder(2).iterdir()]) == 1
    assert on_two(tmp_path / "stopped").status().state == "finished"
    assert content(stopped) == content(whole)


@pytest.fixture
def model(small_run: list[str], models: Path, tmp_path: Path) -> list[str]:
    """What opd.evaluate is given for batches of one problem."""
    return [f"model={models / 'student'}", "scale=tiny", f"paths.outputs={tmp_path}", "evaluate.k=2",
            "evaluate.batch_answers=2", "evaluate.sources.arithmetic.num=12", "max_response_length=12"]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 75, marks=APART), (signal.SIGKILL, -9)]
)
def test_an_evaluation_by_itself_keeps_its_answers_and_goes_on(
    number: int, status: int, model: list[str], tmp_path: Path, monkeypatch, capsys
):
    from opd import cli

    said = tmp_path / "said"
    process = forked(interrupted_evaluation, model, said, number)
    process.join()
    assert process.exitcode == status, said.with_suffix(".err").read_text()
    (path,) = (tmp_path / "evaluate").iterdir()
    assert len([*RunDir(path).answers_folder(0).glob("*.json")]) == 4 and not RunDir(path).config_file.exists()
    errors = said.with_suffix(".err").read_text()
    assert "Traceback" not in errors and ("preempted; rerun the same command to go on" in errors) == (status == 75)
    asked = count_asked(monkeypatch)
    for outputs in (tmp_path, tmp_path / "anew"):
        monkeypatch.setattr("sys.argv", ["opd.evaluate", *model, f"paths.outputs={outputs}"])
        cli.main(evaluate._main, evaluate.arguments)
    assert len(asked) == 8 + 12 and "12 problems of arithmetic" in capsys.readouterr().out
    whole = RunDir(tmp_path / "anew" / "evaluate" / path.name)
    for file in ("samples_file", "texts_file"):
        assert getattr(RunDir(path), file)(0).read_bytes() == getattr(whole, file)(0).read_bytes()
    assert not RunDir(path).answers_folder(0).exists() and RunDir(path).status().state == "finished"


def interrupted_evaluation(arguments: list[str], said: Path, number: int) -> None:
    after_batch(4, told(number))
    child.module("opd.evaluate", arguments, said, said.parent, os.environ.copy())
