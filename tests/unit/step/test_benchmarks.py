"""k answers a problem: the records that come of a sampler's responses."""

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from opd.data.batch import Prompt, Sampling
from opd.recipes.tokenizer import build_tokenizer
from opd.records.run_dir import Sample
from opd.rollout.sampler import TransformersSampler
from opd.step.benchmarks import AnsweredProblem, answer_benchmarks, summarize
from tests.unit.small import rollout_of, root, tiny_qwen3

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


def answered(texts: int | None) -> list[AnsweredProblem]:
    return answer_benchmarks(
        Scripted(),
        {"one": [problem("7"), problem("2")], "two": [problem("7")]},
        Sampling(3, 20, 1.0, 1.0, 0),
        TOKENIZER,
        key=(0,),
        grading_timeout=5.0,
        texts=texts,
        clock=lambda stage: nullcontext(),
    )


def kept(texts: int | None) -> dict[tuple[str, str, int], str]:
    lines = gzip.decompress(b"".join(each.texts for each in answered(texts))).splitlines()
    found = [json.loads(line) for line in lines]
    return {(line["benchmark"], line["problem_id"], line["sample"]): line["text"] for line in found}


def test_answers_are_graded_and_scored():
    found = answered(None)
    assert [(each.benchmark, each.problem_id) for each in found] == [("one", "p7"), ("one", "p2"), ("two", "p7")]
    samples = [sample for each in found for sample in each.samples]
    assert [(sample.benchmark, sample.problem_id) for sample in samples[::3]] == [
        ("one", "p7"), ("one", "p2"), ("two", "p7"),
    ]  # fmt: skip
    assert [sample.sample for sample in samples] == [0, 1, 2] * 3
    assert [sample.correct for sample in samples] == [True, False, True, True, False, False, True, False, True]
    assert [sample.score for sample in samples] == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    said = kept(None)
    assert list(said) == [sample.key for sample in samples]
    for sample in samples:
        assert said[sample.key] == SAID[sample.answer][sample.sample]  # without the token that ended it
        assert sample.num_tokens == len(TOKENIZER.encode(said[sample.key])) + 1


@pytest.mark.parametrize("texts", [1, 2, 3, 9])
def test_keeps_first_texts_of_each_problem(texts: int):
    assert kept(texts) == {key: text for key, text in kept(None).items() if key[2] < texts}
    assert [each.samples for each in answered(texts)] == [each.samples for each in answered(None)]


def test_none_is_kept_where_none_is_wanted():
    assert [each.texts for each in answered(0)] == [b"", b"", b""]


def test_sample_numbers():
    tokenizer = build_tokenizer()
    model = tiny_qwen3(len(tokenizer), dtype=torch.float32)
    sampler = TransformersSampler(root(model), stop_ids=[1, 12], pad_id=0, dtype="float32", max_batch_tokens=400)
    problems = [Prompt(f"p{at}", f"{at}+1=", str(at + 1), "addition", (11 + at, 22, 12, 21)) for at in range(3)]
    sampling, key = Sampling(4, 6, 1.0, 1.0, 0), (5, 0, 1)
    answered = answer_benchmarks(
        sampler, {"one": problems, "two": problems[:1]}, sampling, tokenizer,
        key=key, grading_timeout=5.0, texts=0, clock=lambda _: nullcontext(),
    )  # fmt: skip
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
