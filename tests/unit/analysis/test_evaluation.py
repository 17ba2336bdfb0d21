import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from analysis.evaluation import EXCERPT, SCORES, excerpt, read_evaluation, with_texts
from analysis.read_study import LONGEST
from opd.grading.scores import best_at_k, best_at_k_resampled, maj_at_k, mean_at_k
from opd.printable import printable
from opd.records.files import RecordError, write_atomic
from opd.records.run_dir import RunDir, Sample
from opd.records.texts import pack


def sample(number: int, correct: bool, *, problem: str = "1", benchmark: str = "aime24", **more) -> Sample:
    return replace(
        Sample(
            benchmark, problem, number, correct, float(correct), "204", "204" if correct else "7", 100 + number, False
        ),
        **more,
    )


FOUR = [sample(0, True), sample(1, False), sample(2, False, prediction=None, truncated=True), sample(3, True)]


def read(tmp_path, samples, *, examples: int = 6):
    run = RunDir(tmp_path)
    run.write_samples(10, samples)
    return read_evaluation(run, 10, examples=examples)


def read_text(tmp_path, text: str):
    run = RunDir(tmp_path)
    write_atomic(run.samples_file(10), text)
    return read_evaluation(run, 10, examples=6)


def test_scores_of_a_problem_by_hand(tmp_path):
    evaluation = read(tmp_path, FOUR)
    assert (evaluation.step, evaluation.benchmark, evaluation.problem, list(evaluation.k)) == (
        10,
        ["aime24"],
        ["1"],
        [4],
    )
    scores = dict(zip(SCORES, evaluation.scores[:, 0], strict=True))
    assert scores == {
        "mean": 0.5, "best": 1, "best_resampled": 0.9375, "maj": 1, "truncated": 0.25, "length": 101.5,
    }  # fmt: skip


ANSWER = st.tuples(st.booleans(), st.sampled_from(["1", "2", None]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.sampled_from(["1", "2", None])), min_size=3, max_size=3), min_size=1)
)
def test_scores_are_those_of_opd_scores(tmp_path_factory, problems):
    samples = [
        sample(number, correct, problem=str(position), prediction=prediction)
        for position, answers in enumerate(problems)
        for number, (correct, prediction) in enumerate(answers)
    ]
    evaluation = read(tmp_path_factory.mktemp("run"), samples)
    for position, answers in enumerate(problems):
        correct = [right for right, _ in answers]
        expected = [mean_at_k(correct), best_at_k(correct), best_at_k_resampled(correct)]
        expected.append(maj_at_k([prediction for _, prediction in answers], correct))
        np.testing.assert_allclose(evaluation.scores[:4, evaluation.problem.index(str(position))], expected)


def test_order_of_lines_does_not_matter(tmp_path):
    samples = [replace(answer, problem_id=problem) for problem in ("b", "a") for answer in FOUR]
    straight, turned = read(tmp_path / "1", samples), read(tmp_path / "2", samples[::-1])
    by_problem = [dict(zip(found.problem, found.scores.T.tolist(), strict=True)) for found in (straight, turned)]
    assert by_problem[0] == by_problem[1]


def test_tied_votes_go_to_the_answer_drawn_first_wherever_it_stands_in_the_file(tmp_path):
    tied = [sample(1, True, prediction="204"), sample(0, False, prediction="7")]
    assert read(tmp_path, tied).scores[SCORES.index("maj"), 0] == 0


def test_benchmarks_may_differ_in_k_and_size(tmp_path):
    other = [sample(number, True, benchmark="gsm8k", problem=problem) for problem in "xyz" for number in range(2)]
    evaluation = read(tmp_path, FOUR + other)
    assert dict(zip(evaluation.benchmark, evaluation.k, strict=True)) == {"aime24": 4, "gsm8k": 2}
    assert evaluation.benchmark.count("gsm8k") == 3


def test_examples_take_the_benchmarks_in_turn(tmp_path):
    samples = [sample(0, True, problem=str(number)) for number in range(5)]
    samples += [sample(0, False, benchmark="gsm8k", problem=str(number)) for number in range(2)]
    shown = [(example.benchmark, example.problem) for example in read(tmp_path, samples, examples=5).examples]
    assert shown == [("aime24", "0"), ("gsm8k", "0"), ("aime24", "1"), ("gsm8k", "1"), ("aime24", "2")]


def test_examples_have_the_texts_that_were_kept(tmp_path):
    run = RunDir(tmp_path)
    samples = [sample(number, True, problem=problem) for problem in ("1", "2", "3") for number in range(2)]
    kept = pack("aime24", "1", ["first", "second"], problem="Why?") + pack("aime24", "3", ["third"], problem="How?")
    run.write_samples(10, samples, kept)
    found = with_texts(run, read_evaluation(run, 10, examples=3)).examples
    assert [(one.question, one.response) for one in found] == [("Why?", "first"), (None, None), ("How?", "third")]
    older = gzip.compress(b'{"benchmark": "aime24", "problem_id": "1", "sample": 0, "text": "said"}\n')
    run.write_samples(10, samples, older)
    (first, *_) = with_texts(run, read_evaluation(run, 10, examples=3)).examples
    assert (first.question, first.response) == (None, "said")


def test_an_excerpt_has_the_beginning_and_the_end_on_one_line():
    assert excerpt("a\nb\u202ec\ud800 ") == "a ↵ b\ufffdc\ufffd"
    long = excerpt("begin" + "x" * 10**6 + "end")
    assert len(long) <= EXCERPT and long.startswith("beginx") and long.endswith("xend") and " … " in long
    for text in ("x" * EXCERPT, "\n" * 300 + "y" * 300, "z " * 10**4):  # what a study's export allows
        assert printable(excerpt(text), limit=LONGEST) == excerpt(text)


def test_lone_surrogates_are_read(tmp_path):
    odd = [sample(0, True, problem="a\ud800", prediction="\ud800")]
    evaluation = read(tmp_path, odd)
    assert evaluation.problem == ["a\\ud800"]
    assert evaluation.examples[0].prediction == "\\ud800"


LINE = json.dumps(vars(FOUR[0])) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no answers"),
        (LINE[:-1], "its last line is cut off"),
        (LINE + LINE[:30], "its last line is cut off"),
        (LINE + "\n", "line 2: "),
        (LINE.strip() + LINE, "line 1: Extra data"),
        ("[1]\n", "line 1: is not a JSON object"),
        (LINE.replace("true", "1"), "correct is 1"),
        (LINE.replace('"204"', "204"), "answer is 204"),
        (LINE.replace("100", "100.5"), "num_tokens is 100.5"),
        (LINE.replace("100", "null"), "num_tokens is None"),
        (LINE.replace('"sample": 0, ', ""), "a line has no sample"),
        (LINE.replace('"aime24"', '"average"'), "'average' is not a valid name of a benchmark"),
        (LINE.replace('"aime24"', '""'), "'' is not a valid name of a benchmark"),
        (LINE.replace('"aime24"', '"a\\u202eb"'), "is not a valid name of a benchmark"),
        (LINE + LINE, "aime24 problem 1 has a duplicate sample"),
        (
            LINE + LINE.replace('"sample": 0', '"sample": 1') + LINE.replace('"1"', '"2"'),
            "problem 2 has 1 of 2 answers",
        ),
        (LINE.replace("100", "9" * 40), ""),
        (LINE.replace('"204"', "[" * 100_000), ""),
    ],
)
def test_damage_is_named(tmp_path, text, reason):
    with pytest.raises((RecordError, RecursionError, OverflowError)) as raised:
        read_text(tmp_path, text)
    assert reason in str(raised.value)


def test_unknown_fields_are_no_damage(tmp_path):
    assert read_text(tmp_path, LINE.replace("{", '{"reason": {"a": [1]}, ', 1)).problem == ["1"]
