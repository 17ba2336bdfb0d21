"""What may not start because its prompts do not suffice is told from the config alone, where it can be."""

from dataclasses import replace

import pytest

from opd.config.schema import DataMixture, Dataset, Generated
from opd.config.steps import most_prompts, steps
from opd.errors import UserError
from tests.integration.conftest import composed

MADE = Generated(kind="arithmetic", split="train", num=40, seed=0, mix={"addition": [1]}, grader="mathematics")
SEVERAL = {"one": MADE, "other": MADE}


def dataset(limit: int | None) -> Dataset:
    return Dataset(
        kind="dataset", hub=None, config=None, split="train", revision=None, streaming=False, file="some.jsonl",
        problem=None, problem_field="problem", answer_field="answer", id_field=None, where={},
        domain="math", limit=limit, grader="mathematics",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "most"),
    [
        (MADE, 40),
        (dataset(7), 7),
        (dataset(None), None),
        (DataMixture(kind="mixture", sources=SEVERAL, weights=None, num=None, seed=0), 80),
        (DataMixture(kind="mixture", sources=SEVERAL, weights={"one": 1.0, "other": 3.0}, num=9, seed=0), 9),
        (DataMixture(kind="mixture", sources={**SEVERAL, "file": dataset(None)}, weights=None, num=None, seed=0), None),
    ],
)
def test_the_most_prompts_of_a_source(source: Generated | Dataset | DataMixture, most: int | None):
    assert most_prompts(source) == most


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("num_steps=151", "num_steps=151: epochs=1 over 4800 prompts gives 150 steps; set epochs=2 for that many"),
        ("prompts.source.num=31", "batch_size=32: the prompt set has only 31 prompts"),
        ("optim.warmup_steps=150", "optim.warmup_steps=150: must be fewer than the run's 150 steps"),
    ],
)
def test_steps_that_the_prompts_do_not_give_are_refused_when_composed(given: str, said: str):
    with pytest.raises(UserError) as refused:
        composed(given.split())
    assert str(refused.value) == said
    assert composed(["num_steps=150"]).num_steps == 150


def test_a_batch_may_end_one_epoch_and_begin_the_next():
    config = replace(composed([]), batch_size=4, num_steps=None)
    assert [steps(replace(config, epochs=epochs), 10) for epochs in (1, 2, 3)] == [2, 5, 7]
