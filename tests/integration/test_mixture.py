"""A run on a mixture of prompt sets: proportions, resuming, and what is refused."""

import shutil
from pathlib import Path

import pytest

from opd import train
from opd.errors import UserError
from opd.records.run_dir import RunDir
from tests.integration.conftest import composed

EASY = "{kind: arithmetic, split: train, num: 40, seed: 0, mix: {addition: [2]}, grader: mathematics}"
HARD = "{kind: arithmetic, split: train, num: 30, seed: 1, mix: {multiplication: [2, 3]}, grader: mathematics}"


def mixture(weights: str, *, num: str = "24") -> list[str]:
    source = f"{{kind: mixture, sources: {{easy: {EASY}, hard: {HARD}}}, weights: {weights}, num: {num}, seed: 0}}"
    return ["~prompts.source", f"+prompts.source={source}"]


def run_in(outputs: Path, small_run: list[str]) -> RunDir:
    given = [word for word in small_run if not word.startswith("prompts.source")]
    config = composed([*given, *mixture("{easy: 3, hard: 1}"), f"paths.outputs={outputs}"])
    train.train(config)
    return train.run_dir(config)


def learned(folder: RunDir) -> list[dict]:
    clock = ("time", "throughput/", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in folder.metrics()]


def test_a_killed_run_on_a_mixture_goes_on_to_the_same_numbers(small_run: list[str], tmp_path: Path):
    whole = learned(run_in(tmp_path / "whole", small_run))
    folder = run_in(tmp_path / "cut", small_run)
    for name in ("step_000004", "final"):
        shutil.rmtree(folder.checkpoints / name)
    folder.update_status(state="running", step=3)
    again = learned(run_in(tmp_path / "cut", small_run))
    assert len(whole) == 5 and again == whole


def test_an_epoch_of_a_mixture_holds_each_set_in_its_share(small_run: list[str]):
    from opd.data.prompts import batch_indices
    from opd.step.assemble import load_problems

    given = [word for word in small_run if not word.startswith("prompts.source")]
    config = composed([*given, *mixture("{easy: 3, hard: 1}")])
    found = load_problems(config.prompts.source, config, key="prompts.source")
    epoch = [index for step in range(6) for index in batch_indices(len(found), batch_size=4, step=step, seed=0)]
    assert sorted(epoch) == list(range(24))
    assert sum(found[index].domain == "addition" for index in epoch) == 18
    assert sum(found[index].id.startswith("hard/") for index in epoch) == 6


@pytest.mark.parametrize(
    ("weights", "num", "says"),
    [
        ("{easy: 3, hard: -1}", "24", "prompts.source.weights.hard=-1: should be greater than 0"),
        ("{easy: 3, hrad: 1}", "24", "every set of a mixture has a weight; give one to each of easy, hard"),
        ("{easy: 3}", "24", "every set of a mixture has a weight"),
        ("{easy: 1, hard: 1}", "0", "prompts.source.num=0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(weights: str, num: str, says: str, small_run: list[str]):
    given = [word for word in small_run if not word.startswith("prompts.source")]
    with pytest.raises(UserError) as refused:
        composed([*given, *mixture(weights, num=num)])
    assert says in str(refused.value)


def test_a_set_that_is_too_small_is_refused_by_its_key(small_run: list[str], tmp_path: Path):
    given = [word for word in small_run if not word.startswith("prompts.source")]
    config = composed([*given, *mixture("{easy: 1, hard: 1}", num="80"), f"paths.outputs={tmp_path}"])
    with pytest.raises(UserError, match=r"^prompts\.source\.sources\.hard: has 30 problems"):
        train.train(config)


def test_a_stream_needs_a_limit():
    given = ["scale=own", "student.model=a", "prompts.source.file=null", "prompts.source.hub=a/b"]
    with pytest.raises(UserError, match="a stream may have no end; set the limit of prompts"):
        composed([*given, "prompts.source.streaming=true"])


def test_a_wrong_mix_of_a_recipe_is_reported_of_the_recipe():
    with pytest.raises(UserError, match=r"^recipes\.student\.mix"):
        composed(["++recipes.student.mix.adition=[2]"])
