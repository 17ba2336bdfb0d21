"""A run records what it is made of, and goes on only with the same models, problems, prompts and date."""

import json
import re
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from opd import cli, evaluate
from opd.errors import UserError
from opd.records.run_dir import RunDir
from opd.step import contents
from opd.train import train
from tests.integration.conftest import composed
from tests.integration.test_resume import content
from tests.random_models import save_random

TEMPLATE = "{{ strftime_now('%d') }}+{% for turn in messages %}{{ turn.content }}{% endfor %}"


class World:
    """A run of four steps on files of its own, as a process that was killed after step 2 leaves it."""

    def __init__(self, place: Path):
        self.models, self.problems, self.outputs = place / "models", place / "train.jsonl", place / "outputs"
        self.benchmark = place / "aime24.jsonl"
        save_random(self.models, {"student": {}, "teacher": {"num_layers": 2}, "other": {}, "wide": {"num_layers": 2}})
        for name in ("student", "teacher"):
            settings = self.models / name / "tokenizer_config.json"
            settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
        for file, first in ((self.problems, 1), (self.benchmark, 50)):
            rows = [{"id": f"p{a}", "problem": f"{a}+{a}=", "answer": str(2 * a)} for a in range(first, first + 8)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.command = [
            "scale=own",
            f"student.model={self.models / 'student'}",
            f"teacher.models=[{self.models / 'teacher'}]",
            f"prompts.source.file={self.problems}",
            "evaluate.benchmarks=[aime24]",
            f"evaluate.sources.aime24.file={self.benchmark}",
            f"paths.outputs={self.outputs}",
            "prompts.suffix=''",
            "num_steps=4",
            "epochs=2",
            "batch_size=4",
            "samples_per_prompt=2",
            "max_response_length=8",
            "evaluate.k=2",
            "evaluate.max_response_length=8",
            "evaluate.every=2",
            "checkpoint.every=1",
        ]
        train(composed(self.command))
        (path,) = (self.outputs / "main").iterdir()
        self.run = RunDir(path)
        self.whole = content(self.run)
        for name in ("step_000003", "step_000004", "final"):
            shutil.rmtree(self.run.checkpoints / name, ignore_errors=True)
        self.run.update_status(state="running", step=4)

    def replaced(self, name: str, other: str) -> None:
        shutil.copy(self.models / other / "model.safetensors", self.models / name / "model.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def kept(world: World, tmp_path: Path):
    """The world, whose files are what they were after the test."""
    place = world.models.parent
    shutil.copytree(place, tmp_path / "before")
    yield world
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "before", place)


def other_answer(file: Path) -> None:
    file.write_text(file.read_text().replace('"answer": "2"', '"answer": "3"', 1).replace('"104"', '"105"'))


EXCHANGES = {
    "a problem's answer": (lambda world: other_answer(world.problems), "prompts.source: not what"),
    "a benchmark's answer": (lambda world: other_answer(world.benchmark), "evaluate.sources.aime24: not what"),
    "the student's weights": (lambda world: world.replaced("student", "other"), "student.model: not what"),
    "the teacher's weights": (lambda world: world.replaced("teacher", "wide"), "teacher.models.0: not what"),
    "the student's template": (
        lambda world: (world.models / "student" / "chat_template.jinja").write_text("1+" + TEMPLATE),
        r"student.model \(tokenizer\), prompts.source \(as tokens\), evaluate.sources.aime24 \(as tokens\): not what",
    ),
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_run_does_not_go_on_with_other_content(exchange: str, kept: World):
    change, sentence = EXCHANGES[exchange]
    change(kept)
    with pytest.raises(UserError, match=f"^{sentence} {re.escape(str(kept.run.path))} began with.*put that back, or"):
        train(composed(kept.command))


def test_it_goes_on_with_the_date_that_it_began_with(kept: World, monkeypatch: pytest.MonkeyPatch, capsys):
    date = kept.run.manifest()["date"]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromisoformat(date) + timedelta(days=1)

    monkeypatch.setattr(contents, "datetime", Tomorrow)
    assert train(composed(kept.command)).state == "finished"
    assert f"the chat template writes a date: {date} for all of this run" in capsys.readouterr().out
    assert kept.run.manifest()["date"] == date
    assert content(kept.run) == kept.whole
    # An evaluation of its final checkpoint reads what the run read.
    monkeypatch.setattr(sys, "argv", ["opd.evaluate", f"run={kept.run.path}"])
    cli.main(evaluate._main, evaluate.arguments)
    (path,) = (kept.outputs / "evaluate").iterdir()
    again = RunDir(path).manifest()
    assert again["date"] == date
    read = {key for key in again["contents"] if "prompts" not in key and key != "student.model"}
    assert read == {f"evaluate.sources.aime24{part}" for part in ("", " (as tokens)")} | {"student.model (tokenizer)"}
    assert all(again["contents"][key] == kept.run.manifest()["contents"][key] for key in read)


def test_a_date_of_ones_own_is_the_one_in_the_prompts(kept: World, capsys):
    def tokens(date: str) -> str:
        train(composed([*kept.command, f"prompts.date={date}", f"name=on-{date}", "num_steps=1"]))
        (path,) = (kept.outputs / "main").glob(f"on-{date}-*")
        assert RunDir(path).manifest()["date"] == date
        return RunDir(path).manifest()["contents"]["prompts.source (as tokens)"]

    assert tokens("2026-11-05") == tokens("2026-12-05") != tokens("2026-11-06")
    assert "writes a date" not in capsys.readouterr().out


def test_what_is_no_date_is_refused(world: World):
    with pytest.raises(UserError, match=r"prompts.date.*should be a date \(YYYY-MM-DD\)"):
        composed([*world.command, "prompts.date=today"])


def test_a_manifest_without_hashes_goes_on_and_says_so(kept: World, capsys):
    old = {key: value for key, value in kept.run.manifest().items() if key not in ("contents", "date")}
    kept.run.write_manifest(old)
    kept.replaced("teacher", "wide")
    assert train(composed(kept.command)).state == "finished"
    assert "has no hashes of models and problems" in capsys.readouterr().err
