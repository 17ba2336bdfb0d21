"""Answers of an evaluation under way, kept batch by batch: where it is interrupted, the same command goes on from them.
Nothing here imports torch.
"""

import hashlib
import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd.records.files import RecordError, as_record, read_json, write_atomic
from opd.records.run_dir import Sample


@dataclass(frozen=True)
class AnsweredProblem:
    """A problem's k answers, graded, and those of their texts that are kept, packed."""

    benchmark: str
    problem_id: str
    samples: list[Sample]
    texts: bytes


@dataclass(frozen=True)
class _Batch:
    of: str
    samples: list[Sample]
    texts: list[str]


@dataclass(frozen=True)
class KeptAnswers:
    """The finished batches in `folder`, a file each. `of` is a hash of what the answers depend on besides the problems;
    answers of anything else are not read.
    """

    folder: Path
    of: str

    def read(self, number: int, benchmark: str, problems: Sequence[str], k: int) -> list[AnsweredProblem] | None:
        """The batch `number`, if it is finished: the answers to exactly these problems, `k` to each, in their order."""
        file = self._file(number)
        with suppress(RecordError, ValueError):  # what cannot be read is answered again
            batch = as_record(_Batch, read_json(file), str(file))
            wanted = [(benchmark, problem, sample) for problem in problems for sample in range(k)]
            if (batch.of, [sample.key for sample in batch.samples]) == (self.of, wanted):
                return [
                    AnsweredProblem(benchmark, problem, batch.samples[k * place : k * (place + 1)], b64decode(texts))
                    for place, (problem, texts) in enumerate(zip(problems, batch.texts, strict=True))
                ]
        return None

    def write(self, number: int, answered: Sequence[AnsweredProblem]) -> None:
        """Keeps the batch `number`."""
        samples = [sample for problem in answered for sample in problem.samples]
        batch = _Batch(self.of, samples, [b64encode(problem.texts).decode() for problem in answered])
        write_atomic(self._file(number), json.dumps(asdict(batch)))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def answers_of(*facts: Any) -> str:
    """The hash of what answers depend on, given as plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def forget(folder: Path) -> None:
    """Removes the batches in `folder`, once the evaluation is recorded."""
    shutil.rmtree(folder, ignore_errors=True)
