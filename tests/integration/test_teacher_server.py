"""Whole runs with a teacher on a server: the numbers of a local one, restarts, and a key that stays out of records."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd import cli, train as module
from opd.data.batch import Rollout
from opd.errors import UserError
from opd.model.load import load_model
from opd.model.policy import Policy
from opd.records import config_argument
from opd.records.run_dir import RunDir
from opd.teacher.server import ServerTeachers
from opd.train import run_dir, train
from tests.integration.conftest import composed
from tests.integration.test_resume import content
from tests.unit.teacher.tiny_server import Handler, TinyServer


@pytest.fixture
def serve(models: Path) -> Iterator[Callable[..., TinyServer]]:
    """Starts a server of the teacher; all stop at the end of the test."""
    started, path = [], str(models / "large")
    teacher = load_model(path, revision=None, dtype="float32", key="teacher")

    def serve(**knobs) -> TinyServer:
        started.append(TinyServer(teacher, **({"name": path} | knobs)))
        return started[-1]

    yield serve
    for server in started:
        server.stop()


def served(server: TinyServer, *more: str) -> list[str]:
    return ["teacher.engine=server", f"teacher.server.urls=[[{server.url}]]", "teacher.server.patience=1.0", *more]


@pytest.fixture
def config(small_run: list[str], tmp_path: Path):
    """The config with these overrides."""
    return lambda *overrides, to="outputs": composed([*small_run, f"paths.outputs={tmp_path / to}", *overrides])


def lines(folder: RunDir) -> list[dict[str, float]]:
    return [line for line in folder.metrics() if line["step"] > 0]


def test_a_run_has_the_numbers_of_one_with_a_local_teacher(serve: Callable[..., TinyServer], config):
    local, on_server = config(to="local"), config(*served(serve()))
    for each in (local, on_server):
        assert train(each).state == "finished"
    for ours, theirs in zip(lines(run_dir(local)), lines(run_dir(on_server)), strict=True):
        assert theirs["entropy/teacher"] is None
        for name in ("loss", "grad_norm", "divergence/reverse_kl", "whitening/std", "response/tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("tail", ["renormalize", "sampled"])
def test_a_top_k_from_the_server_is_that_of_a_local_teacher(tail: str, serve: Callable[..., TinyServer], config):
    knobs = [
        "support=topk",
        "support.k=6",
        f"support.tail={tail}",
        "whitening=none",
        "signal.entropy=0.01",
        "num_steps=2",
    ]
    knobs += ["mini_batch_size=2"]
    local, on_server = config(*knobs, to="local"), config(*served(serve()), *knobs)
    for each in (local, on_server):
        assert train(each).state == "finished"
    names = ("loss", "grad_norm", "support/exact", "support/student_mass", "support/reference_mass", "support/overlap")
    for ours, theirs in zip(lines(run_dir(local)), lines(run_dir(on_server)), strict=True):
        assert ours["support/student_mass"] < 0.9
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def test_after_a_server_that_never_came_back_the_same_command_goes_on(
    serve: Callable[..., TinyServer], config, monkeypatch: pytest.MonkeyPatch
):
    server = serve()
    undisturbed = config(*served(server), to="undisturbed")
    train(undisturbed)
    disturbed, ask = config(*served(server)), ServerTeachers.start_scoring

    def dying(self, rollout, needed):
        if run_dir(disturbed).status().step == 2:
            server.stop()
        return ask(self, rollout, needed)

    with monkeypatch.context() as patch:
        patch.setattr(ServerTeachers, "start_scoring", dying)
        with pytest.raises(UserError, match=r"did not answer within the teacher.server.patience of 1 s") as refused:
            train(disturbed)
    status = run_dir(disturbed).status()
    assert (status.state, status.step, status.error) == ("failed", 2, str(refused.value))
    with pytest.raises(UserError, match=f"{server.url} cannot be reached"):
        train(disturbed)
    moved = serve()
    elsewhere = config(*served(moved))
    assert run_dir(elsewhere) == run_dir(disturbed), "where a server is does not make another run"
    assert train(elsewhere).state == "finished"
    assert content(run_dir(elsewhere)) == content(run_dir(undisturbed))


def test_the_student_scores_while_a_server_does(
    serve: Callable[..., TinyServer], config, monkeypatch: pytest.MonkeyPatch
):
    """The server answers no earlier than the student has begun; whoever waited for it first would wait in vain."""
    server, begun, scores = serve(), threading.Event(), Policy.scores

    def held(handler: Handler, right: dict) -> None:
        handler.answer(right if begun.wait(10) else {"error": {"message": "the student waits"}}, 200)

    def own(self: Policy, rollout: Rollout, *given):
        begun.set()
        return scores(self, rollout, *given)

    monkeypatch.setattr(Policy, "scores", own)
    together = config(*served(server), "num_steps=1")
    server.faults += [Handler.answer] * 4 + [held] * 20  # four requests see before whether its scores are a model's
    assert train(together).state == "finished"
    assert server.requests and len(server.faults) < 20


def test_a_key_is_in_no_record_and_no_message(
    serve: Callable[..., TinyServer], config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    server, key = serve(key="sk-8cbe1f"), ["teacher.server.api_key_env=OPD_TEST_KEY", "num_steps=1"]
    with pytest.raises(
        UserError, match=r"teacher.server.api_key_env=OPD_TEST_KEY: that environment variable is not set"
    ):
        train(config(*served(server, *key)))
    monkeypatch.setenv("OPD_TEST_KEY", "sk-wrong")
    with pytest.raises(UserError, match="status 401"):
        train(config(*served(server, *key)))
    monkeypatch.setenv("OPD_TEST_KEY", "sk-8cbe1f")
    finished = config(*served(server, *key))
    assert train(finished).state == "finished"
    files = [file for file in run_dir(finished).path.rglob("*") if file.is_file()]
    said = capfd.readouterr()
    assert len(files) > 8
    assert not [file for file in files if b"sk-" in file.read_bytes()] and "sk-" not in said.out + said.err


def test_the_command_says_nothing_but_its_steps_and_where_it_is(
    serve: Callable[..., TinyServer], small_run, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]
):
    words = [*small_run, f"paths.outputs={tmp_path}", *served(serve()), "evaluate.at_start=false"]
    monkeypatch.setattr(sys, "argv", ["opd", *words])
    cli.main(module._main, config_argument.expand)
    said = capfd.readouterr()
    *steps, where, _, _ = said.out.splitlines()
    assert said.err == "" and [line.split()[0] for line in steps] == ["step"] * 4
    assert where.startswith(str(tmp_path)) and where.endswith(": finished")
