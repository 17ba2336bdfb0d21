"""Reads one evaluation, the graded answers of an `evaluate/step_*.jsonl`, as the scores of each problem."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.json_lines import read_table
from analysis.text import encodable
from opd.printable import printable
from opd.records.files import RecordError, parse_lines, read_bytes
from opd.records.run_dir import RunDir, Sample
from opd.records.texts import read_answers

AVERAGE = "average"  # in a benchmark's place: the unweighted mean over a run's benchmarks

# The scores of a problem's k answers: those of `opd.grading.scores`, the share cut off at the length limit, the mean
# length in tokens. In a `Sample`, `prediction` is the answer extracted from the response (None without one), `answer`
# the right one.
SCORES = ("mean", "best", "best_resampled", "maj", "truncated", "length")

EXCERPT = 400  # characters of a problem's or a response's text that are shown
_ID = 60

_SCHEMA = pa.schema(
    {
        "benchmark": pa.string(),
        "problem_id": pa.string(),
        "sample": pa.int64(),
        "correct": pa.bool_(),
        "answer": pa.string(),
        "prediction": pa.string(),
        "num_tokens": pa.int64(),
        "truncated": pa.bool_(),
    }
)
_PYTHON = {pa.string(): str, pa.int64(): int, pa.bool_(): bool}


@dataclass(frozen=True)
class Example:
    """One answer to show: the problem's id, the extracted answer, the right one; and the texts of problem and response,
    None where they were not recorded.
    """

    benchmark: str
    problem: str
    prediction: str | None
    answer: str
    correct: bool
    question: str | None = None
    response: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """The problems of one evaluation; those of one benchmark have the same number of answers.

    Attributes:
        step: the optimizer step; 0 is before training.
        benchmark, problem, k: of each problem, k the number of its answers.
        scores: `SCORES`, "score problem".
        examples: the first answer to the first problems, alternating between the benchmarks.
    """

    step: int
    benchmark: list[str]
    problem: list[str]
    k: np.ndarray
    scores: np.ndarray
    examples: list[Example]

    def mean(self, score: str) -> float:
        """The unweighted mean over the benchmarks of the mean over their problems."""
        names, of = np.unique(self.benchmark, return_inverse=True)
        total = np.bincount(of, weights=self.scores[SCORES.index(score)], minlength=len(names))
        return float((total / np.bincount(of)).mean())


def read_evaluation(run: RunDir, step: int, *, examples: int) -> Evaluation:
    """Reads the evaluation at `step`, with at most that many examples.

    Raises:
        RecordError: where a line is damaged, cut off or of the wrong type, an answer is a duplicate, or answers are
            missing (one problem of a benchmark has fewer than another).
    """
    table = _read(run, step)
    blocks, graded = list(_blocks(table)), table.select(["correct", "truncated", "num_tokens", "prediction"])
    return Evaluation(
        step=step,
        benchmark=[block.benchmark for block in blocks for _ in block.problems],
        problem=[problem for block in blocks for problem in block.problems],
        k=np.concatenate([np.full(len(block.problems), block.rows.shape[1]) for block in blocks]),
        scores=np.concatenate([_scores(graded.take(block.rows.ravel()), block.rows.shape) for block in blocks], axis=1),
        examples=_examples(table, blocks, examples),
    )


def with_texts(run: RunDir, evaluation: Evaluation) -> Evaluation:
    """The evaluation with the texts of its examples, as far as the run has kept them; raises `RecordError`."""
    wanted = {(example.benchmark, example.problem) for example in evaluation.examples}
    found: dict[tuple[str, str], tuple[str | None, str]] = {}
    for (benchmark, problem, _), response, question in read_answers(run, evaluation.step):
        if (place := (benchmark, printable(problem, limit=_ID))) in wanted and place not in found:
            found[place] = (None if question is None else excerpt(question), excerpt(response))
            if len(found) == len(wanted):
                break
    texts = [found.get((example.benchmark, example.problem), (None, None)) for example in evaluation.examples]
    examples = zip(evaluation.examples, texts, strict=True)
    return replace(evaluation, examples=[replace(one, question=q, response=r) for one, (q, r) in examples])


def excerpt(text: str) -> str:
    """A text on one line, its middle left out where it is longer than `EXCERPT`; a line break is shown as ↵."""
    text = text.strip().replace("\n", " ↵ ")
    half = EXCERPT // 2 - 2
    return printable(text if len(text) <= EXCERPT else f"{text[:half]} … {text[-half:]}", limit=EXCERPT)


def _read(run: RunDir, step: int) -> pa.Table:
    """The file's lines as a table. Lines that are not of the plain form go through the slower reader of records, which
    says what is wrong and where.
    """
    content = read_bytes(run.samples_file(step))
    if not content:
        raise RecordError("has no answers")
    if not content.endswith(b"\n"):
        raise RecordError("its last line is cut off")
    table = read_table(content, _SCHEMA, optional=frozenset({"prediction"}))
    return _table(list(parse_lines(content, run.samples_file(step)))) if table is None else table


def _table(lines: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for field in _SCHEMA:
        if not all(field.name in line for line in lines):
            raise RecordError(f"a line has no {field.name}")
        values = [line[field.name] for line in lines]
        for value in values:
            if type(value) is not _PYTHON[field.type] and not (value is None and field.name == "prediction"):
                raise RecordError(f"{field.name} is {printable(repr(value), limit=40)}")
        columns[field.name] = [encodable(value) if isinstance(value, str) else value for value in values]
    return pa.table(columns, schema=_SCHEMA)


# Scores here are of right and wrong answers; partial credit (`score`) is not read.
assert set(_SCHEMA.names) == {field.name for field in fields(Sample)} - {"score"}


@dataclass(frozen=True)
class _Block:
    """One benchmark: its problems in the order of the record, and the rows of their answers, "problem sample"."""

    benchmark: str
    problems: list[str]
    rows: np.ndarray


def _blocks(table: pa.Table) -> Iterator[_Block]:
    benchmark, problem = (table[name].combine_chunks().dictionary_encode() for name in ("benchmark", "problem_id"))
    of_benchmark, of_problem = benchmark.indices.to_numpy(), problem.indices.to_numpy()
    sample, problems = table["sample"].to_numpy(), problem.dictionary.to_pylist()
    for code, name in enumerate(benchmark.dictionary.to_pylist()):
        if name == AVERAGE or not name or name != printable(name, limit=60):
            raise RecordError(f"{printable(repr(name), limit=60)} is not a valid name of a benchmark")
        rows = np.flatnonzero(of_benchmark == code)
        rows = rows[np.lexsort((sample[rows], of_problem[rows]))]
        answered, answers = np.unique(of_problem[rows], return_counts=True)
        for position in np.flatnonzero(answers < answers.max())[:1]:
            where = printable(f"{name} problem {problems[answered[position]]}", limit=100)
            raise RecordError(f"{where} has {answers[position]} of {answers.max()} answers")
        rows = rows.reshape(len(answered), -1)
        for position in np.flatnonzero((np.diff(sample[rows], axis=1) == 0).any(axis=1))[:1]:
            where = printable(f"{name} problem {problems[answered[position]]}", limit=100)
            raise RecordError(f"{where} has a duplicate sample")
        yield _Block(name, [problems[code] for code in answered], rows)


def _scores(answers: pa.Table, shape: tuple[int, ...]) -> np.ndarray:
    correct, truncated = (
        answers[name].cast(pa.uint8()).to_numpy().astype(bool).reshape(shape) for name in ("correct", "truncated")
    )  # Arrow makes an object of each boolean
    length = answers["num_tokens"].to_numpy().reshape(shape)
    given = answers["prediction"].combine_chunks().dictionary_encode().indices.fill_null(-1)
    maj = _maj(given.to_numpy().reshape(shape), correct)
    return np.stack([*grades(correct.sum(axis=1), shape[1]), maj, truncated.mean(axis=1), length.mean(axis=1)])


def grades(right: np.ndarray, k: np.ndarray | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`opd.grading.scores` of k answers of which `right` are right: mean@k, best@k and best@k resampled."""
    return right / k, (right > 0).astype(float), 1 - (1 - right / k) ** k


def _maj(given: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """`opd.grading.scores.maj_at_k` of each row of "problem sample"; equal answers have equal codes, none is -1."""
    size, k = given.shape
    votes = np.arange(size)[:, None] * (given.max() + 1) + given
    at = np.flatnonzero(given >= 0)
    _, first, count = np.unique(votes.ravel()[at], return_index=True, return_counts=True)
    first, problem = at[first], at[first] // k
    order = np.lexsort((first, -count, problem))
    chosen = first[order[np.unique(problem[order], return_index=True)[1]]]
    maj = np.zeros(size)
    maj[chosen // k] = correct.ravel()[chosen]
    return maj


def _examples(table: pa.Table, blocks: Sequence[_Block], count: int) -> list[Example]:
    turns = [
        (turn, position, block.rows[turn, 0])
        for position, block in enumerate(blocks)
        for turn in range(min(count, len(block.problems)))
    ]
    shown = table.take([int(row) for _, _, row in sorted(turns)[:count]]).to_pylist()
    return [
        Example(
            benchmark=row["benchmark"],
            problem=printable(row["problem_id"], limit=_ID),
            prediction=None if row["prediction"] is None else printable(row["prediction"], limit=160),
            answer=printable(row["answer"], limit=80),
            correct=row["correct"],
        )
        for row in shown
    ]
