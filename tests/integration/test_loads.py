"""A tokenizer of a large vocabulary takes seconds to read: a run reads that of each place once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from opd import train
from opd.evaluate import evaluate
from opd.preflight.run import preflight
from tests.integration.conftest import composed

LADDER = "teacher=ladder ensemble=hard_switch"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that tokenizers were read from, one entry a reading, by what transformers reads them with."""
    found: list[str] = []
    load = PreTrainedTokenizerBase.from_pretrained.__func__

    def counted(cls: type, place: Any, *given: Any, **more: Any) -> Any:
        found.append(Path(place).name)
        return load(cls, place, *given, **more)

    monkeypatch.setattr(PreTrainedTokenizerBase, "from_pretrained", classmethod(counted))
    return found


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ("", ["large", "student"]),
        (LADDER, ["large", "medium", "small", "student"]),
        ("teacher=self signal.near_start=0.1", ["student"]),
        ("signal.near_start=0.1 shaping.anchor=STUDENT scale.teacher=STUDENT", ["student"]),
        ("preflight=true", ["large", "student"]),
        (f"preflight=true {LADDER}", ["large", "medium", "small", "student"]),
    ],
)
def test_a_run_reads_the_tokenizer_of_each_place_once(
    given: str, places: list[str], read: list[str], small_run: list[str], models: Path, tmp_path: Path
):
    more = given.replace("STUDENT", str(models / "student")).split()
    config = composed([*small_run, "num_steps=1", "epochs=1", f"paths.outputs={tmp_path}", *more])
    if config.preflight:
        preflight(config, train.run_dir(config))
    else:
        assert train.train(config).state == "finished"
    assert sorted(read) == places


def test_an_evaluation_reads_one(read: list[str], small_run: list[str], tmp_path: Path):
    evaluate(composed([*small_run, "teacher=self", f"paths.outputs={tmp_path}"]))
    assert read == ["student"]


def test_equal_tokenizers_in_two_places_are_two(read: list[str], small_run: list[str], models: Path, tmp_path: Path):
    shutil.copytree(models / "student", tmp_path / "copy")
    config = composed([*small_run, "num_steps=1", f"scale.teacher={tmp_path / 'copy'}", f"paths.outputs={tmp_path}"])
    assert train.train(config).state == "finished" and sorted(read) == ["copy", "student"]
