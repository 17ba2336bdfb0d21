"""k answers a problem: the records that come of a sampler's responses."""

import gzip
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from opd.answers import Answered, answer_benchmarks
from opd.batch import Prompt, Sampling
from opd.data.tokenizer import build_tokenizer
from tests.unit.engine.conftest import rollout_of

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


def answered(texts: int | None) -> list[Answered]:
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


def test_every_answer_is_graded_by_its_own_text_and_scored():
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
def test_the_first_texts_of_each_problem_are_kept(texts: int):
    assert kept(texts) == {key: text for key, text in kept(None).items() if key[2] < texts}
    assert [each.samples for each in answered(texts)] == [each.samples for each in answered(None)]


def test_none_is_kept_where_none_is_wanted():
    assert [each.texts for each in answered(0)] == [b"", b"", b""]
