"""k answers a problem: the records that come of a sampler's responses."""

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.config.schema import Evaluate
from opd.data.batch import Prompt, Sampling
from opd.recipes.tokenizer import build_tokenizer
from opd.records.answers import KeptAnswers
from opd.records.run_dir import Sample
from opd.rollout.sampler import TransformersSampler
from opd.step.benchmarks import AnsweredProblem, answer_benchmarks, summarize
from tests.unit.small import ALONE, rollout_of, root, tiny_qwen3

TOKENIZER = build_tokenizer()
SAID = {"2": ["1+1=2#### 2", "#### 3", "22"], "7": ["#### 7", "", "3+4#### 7"]}


class Scripted:
    """Says of each problem what `SAID` has for its answer, and ends as a model does."""

    def sample(self, prompts, sampling, *, key):
        said = [text for prompt in prompts for text in SAID[prompt.answer][: sampling.num_samples]]
        rollout = rollout_of([[2]] * len(said), [[*TOKENIZER.encode(text), TOKENIZER.eos_token_id] for text in said])
        return replace(rollout, group=torch.arange(len(prompts)).repeat_interleave(sampling.num_samples))

    def sync(self): ...

    def close(self): ...


def problem(answer: str) -> Prompt:
    return Prompt(f"p{answer}", "?", answer, "addition", (2,))


def settings(k: int, length: int, texts: int | None, batch: int | None = None) -> Evaluate:
    return Evaluate(k, texts, batch, 0, True, 1.0, 1.0, 0, length, ["one"], {}, 5.0)


def asked(sampler, benchmarks, given: Evaluate, folder: Path, stopping=lambda: False, **knobs):
    """The answers, and what was reported on the way."""
    reports = []
    answered = answer_benchmarks(
        sampler,
        benchmarks,
        given,
        TOKENIZER,
        ranks=ALONE,
        stopping=stopping,
        report=lambda *report: reports.append(report),
        clock=lambda stage: nullcontext(),
        **{"key": (0,), "kept": KeptAnswers(folder, "of this")} | knobs,
    )
    return answered, reports


@pytest.fixture
def answered(tmp_path: Path):
    def answer(texts: int | None) -> list[AnsweredProblem]:
        benchmarks = {"one": [problem("7"), problem("2")], "two": [problem("7")]}
        found = asked(Scripted(), benchmarks, settings(3, 20, texts), tmp_path / str(texts))[0]
        assert found is not None
        return found

    return answer


def kept(answered: list[AnsweredProblem]) -> dict[tuple[str, str, int], str]:
    lines = gzip.decompress(b"".join(each.texts for each in answered)).splitlines()
    found = [json.loads(line) for line in lines]
    return {(line["benchmark"], line["problem_id"], line["sample"]): line["text"] for line in found}


def test_answers_are_graded_and_scored(answered):
    found = answered(None)
    assert [(each.benchmark, each.problem_id) for each in found] == [("one", "p7"), ("one", "p2"), ("two", "p7")]
    samples = [sample for each in found for sample in each.samples]
    assert [(sample.benchmark, sample.problem_id) for sample in samples[::3]] == [
        ("one", "p7"), ("one", "p2"), ("two", "p7"),
    ]  # fmt: skip
    assert [sample.sample for sample in samples] == [0, 1, 2] * 3
    assert [sample.correct for sample in samples] == [True, False, True, True, False, False, True, False, True]
    assert [sample.score for sample in samples] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    said = kept(found)
    assert list(said) == [sample.key for sample in samples]
    for sample in samples:
        assert said[sample.key] == SAID[sample.answer][sample.sample]  # without the token that ended it
        assert sample.num_tokens == len(TOKENIZER.encode(said[sample.key])) + 1


@pytest.mark.parametrize("texts", [1, 2, 3, 9])
def test_keeps_first_texts_of_each_problem(texts: int, answered):
    assert kept(answered(texts)) == {key: text for key, text in kept(answered(None)).items() if key[2] < texts}
    assert [each.samples for each in answered(texts)] == [each.samples for each in answered(None)]


def test_none_is_kept_where_none_is_wanted(answered):
    assert [each.texts for each in answered(0)] == [b"", b"", b""]


def test_sample_numbers(tmp_path: Path):
    tokenizer = build_tokenizer()
    model = tiny_qwen3(len(tokenizer), dtype=torch.float32)
    sampler = TransformersSampler(root(model), stop_ids=[1, 12], pad_id=0, dtype="float32", max_batch_tokens=400)
    problems = [Prompt(f"p{at}", f"{at}+1=", str(at + 1), "addition", (11 + at, 22, 12, 21)) for at in range(3)]
    sampling, key = Sampling(4, 6, 1.0, 1.0, 0), (5, 0, 1)
    answered, _ = asked(sampler, {"one": problems, "two": problems[:1]}, settings(4, 6, 0), tmp_path, key=key)
    assert answered is not None
    found = [sample for each in answered for sample in each.samples]
    assert [(each.benchmark, each.problem_id, each.sample) for each in found] == [
        *(("one", f"p{at}", sample) for at in range(3) for sample in range(4)),
        *(("two", "p0", sample) for sample in range(4)),
    ]
    rollout = sampler.sample(problems, sampling, key=key)
    assert [each.num_tokens for each in found[:12]] == rollout.mask.sum(1).tolist()
    assert [each.truncated for each in found[:12]] == rollout.truncated.tolist()
    assert {each.truncated for each in found[:12]} == {True, False}
    assert [each.answer for each in found[:12]] == [str(at + 1) for at in range(3) for _ in range(4)]


PROBLEMS = {"one": [replace(problem("7"), id=f"a{at}") for at in range(5)], "two": [problem("2"), problem("7")]}


class Counting(Scripted):
    """Notes the problems that it is asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def sample(self, prompts, sampling, *, key):
        self.asked.append([prompt.id for prompt in prompts])
        return super().sample(prompts, sampling, key=key)


@pytest.mark.parametrize(
    ("batch", "asked_together"),
    [
        (None, [["a0", "a1", "a2", "a3", "a4"], ["p2", "p7"]]),
        (6, [["a0", "a1"], ["a2", "a3"], ["a4"], ["p2", "p7"]]),
        (2, [["a0"], ["a1"], ["a2"], ["a3"], ["a4"], ["p2"], ["p7"]]),
    ],
)
def test_problems_are_answered_in_batches_of_so_many_answers(batch, asked_together, tmp_path: Path):
    sampler = Counting()
    answered, reports = asked(sampler, PROBLEMS, settings(3, 20, None, batch), tmp_path)
    assert sampler.asked == asked_together
    assert [each.problem_id for each in answered] == [id for batch in asked_together for id in batch]
    assert reports[0] == ("one", 0, 5) and reports[-1] == ("two", 2 - len(asked_together[-1]), 2)


def test_answers_that_were_finished_are_not_asked_again(tmp_path: Path):
    given = settings(3, 20, None, 6)
    whole, _ = asked(Scripted(), PROBLEMS, given, tmp_path / "whole")
    for finished in range(4):
        folder, turns, sampler = tmp_path / str(finished), iter(range(finished)), Counting()
        assert asked(Scripted(), PROBLEMS, given, folder, lambda turns=turns: next(turns, None) is None)[0] is None
        assert len([*folder.glob("*")]) == finished
        assert asked(sampler, PROBLEMS, given, folder)[0] == whole
        assert len(sampler.asked) == 4 - finished


@pytest.mark.parametrize(
    ("changed", "again"), [("of", 4), ("k", 4), ("batch", 7), ("ids", 1), ("torn", 1), ("type", 1)]
)
def test_answers_of_anything_else_are_asked_again(changed: str, again: int, tmp_path: Path):
    asked(Scripted(), PROBLEMS, settings(2, 20, None, 4), tmp_path)
    file, problems, sampler = tmp_path / "000000.json", dict(PROBLEMS), Counting()
    if changed == "ids":
        problems["one"] = [replace(PROBLEMS["one"][0], id="other"), *PROBLEMS["one"][1:]]
    if changed == "torn":
        file.write_text(file.read_text()[:-20])
    if changed == "type":
        file.write_text(file.read_text().replace('"correct": true', '"correct": "yes"', 1))
    given = settings(3, 20, None, 6) if changed == "k" else settings(2, 20, None, 2 if changed == "batch" else 4)
    knobs = {"kept": KeptAnswers(tmp_path, "of that")} if changed == "of" else {}
    anew, _ = asked(Scripted(), problems, given, tmp_path / "anew")
    assert asked(sampler, problems, given, tmp_path, **knobs)[0] == anew
    assert len(sampler.asked) == again


def test_benchmarks_are_weighted_equally():
    def graded(benchmark: str, problem: str, right: list[bool], length: int) -> list[Sample]:
        return [
            Sample(benchmark, problem, at, each, float(each), "1", "1", length, False) for at, each in enumerate(right)
        ]

    small = graded("small", "a", [True, True], 10)
    large = [each for problem in "abc" for each in graded("large", problem, [problem == "a", False], 40)]
    scores = summarize([*large, *small])
    assert scores["evaluate/small/mean@2"] == 1 and scores["evaluate/large/mean@2"] == pytest.approx(1 / 6)
    assert scores["evaluate/mean@2"] == pytest.approx((1 + 1 / 6) / 2)
    assert scores["evaluate/best@2"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["evaluate/num_tokens"] == (10 + 40) / 2
