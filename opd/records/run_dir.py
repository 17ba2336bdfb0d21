"""The run directory: schema, writer and reader. Nothing here imports torch.

    outputs/<study>/<name>-<8 hex of the config hash>-s<seed>/
      config.yaml  status.json  manifest.json  metrics.jsonl  checkpoints/  profile/rank_0.json.gz
      evaluate/step_000100.jsonl  evaluate/step_000100.text.jsonl.gz  evaluate/step_000100.batches/
      rollouts/step_000100.json  rollouts/step_000100.html

Every file is replaced atomically, or appended to a line at a time. A torn last line is dropped on reading.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from opd.printable import printable
from opd.records.files import (
    Count,
    Flag,
    RecordError,
    as_record,
    json_line,
    now,
    parse_line,
    read_bytes,
    read_config,
    read_json,
    read_lines,
    write_atomic,
)

State = Literal["pending", "running", "preempted", "finished", "failed"]

# What identifies a sample of an evaluation: its benchmark, problem_id and sample.
Key = tuple[str, str, int]

# Records by any of which a run's directory is known.
_RECORDS = {"config.yaml", "status.json", "manifest.json", "metrics.jsonl"}


@dataclass(frozen=True)
class Status:
    """`status.json`: the run's state, as the run reports it. Times are ISO 8601 in UTC."""

    state: State
    step: Count
    num_steps: Count
    error: str | None
    started: str
    updated: str
    host: str
    job_id: str | None
    attempts: Count


@dataclass(frozen=True)
class Sample:
    """One graded answer: a line of `evaluate/step_*.jsonl`. Its text is in a file beside it (`opd.records.texts`).

    Attributes:
        benchmark, problem_id, sample: which problem, and which of its k answers.
        correct: whether the grader accepts it.
        score: the grader's score, in [0, 1].
        answer, prediction: the correct answer; the one extracted from the text, None if there is none.
        num_tokens, truncated: the response's length; whether it hit the limit.

    Raises:
        ValueError: where `score` is not in [0, 1].
    """

    benchmark: str
    problem_id: str
    sample: Count
    correct: Flag
    score: float
    answer: str
    prediction: str | None
    num_tokens: Count
    truncated: Flag

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score is {self.score}, not a number from 0 to 1")

    @property
    def key(self) -> Key:
        return self.benchmark, self.problem_id, self.sample


@dataclass(frozen=True)
class RunDir:
    """One run's directory. Reading raises `RecordError` for a damaged file, but drops a torn last line."""

    path: Path

    # ---- layout

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def samples_file(self, step: int) -> Path:
        return self.path / "evaluate" / f"step_{step:06d}.jsonl"

    def texts_file(self, step: int) -> Path:
        return self.path / "evaluate" / f"step_{step:06d}.text.jsonl.gz"

    def answers_folder(self, step: int) -> Path:
        """The finished answers of an evaluation that is not recorded yet; see `opd.records.answers`."""
        return self.path / "evaluate" / f"step_{step:06d}.batches"

    def rollouts_file(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.json"

    def page_file(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.html"

    def trace_file(self, rank: int) -> Path:
        """The profiler's trace of a rank, in Chrome's format."""
        return self.path / "profile" / f"rank_{rank}.json.gz"

    # ---- reading

    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return read_config(self.config_file)

    def status(self) -> Status:
        """The run's state when it last wrote it."""
        return as_record(Status, read_json(self.status_file), str(self.status_file))

    def manifest(self) -> dict[str, Any]:
        """The code, packages and hardware of the run."""
        return read_json(self.manifest_file)

    def metrics(self) -> list[dict[str, Any]]:
        """One object a step, in order; empty before the first step."""
        return list(read_lines(self.metrics_file)) if self.metrics_file.exists() else []

    def evaluations(self) -> dict[int, Path]:
        """Evaluated step → its samples file, in order of steps."""
        return self._by_step("evaluate", "jsonl")

    def texts(self) -> dict[int, Path]:
        """Step → the texts of its evaluation, in order of steps, where they are kept; see `opd.records.texts`."""
        return self._by_step("evaluate", "text.jsonl.gz")

    def rollouts(self) -> dict[int, Path]:
        """Step → its record of rollouts, in order of steps."""
        return self._by_step("rollouts", "json")

    def pages(self) -> dict[int, Path]:
        """Step → its page of rollouts, in order of steps."""
        return self._by_step("rollouts", "html")

    def _by_step(self, folder: str, kind: str) -> dict[int, Path]:
        files = {}
        for file in (self.path / folder).glob(f"step_*.{kind}"):
            if match := re.fullmatch(rf"step_(\d{{6,}})\.{re.escape(kind)}", file.name):
                files[int(match[1])] = file
        return dict(sorted(files.items()))

    def samples(self, step: int) -> list[Sample]:
        """The graded answers of the evaluation at `step`. In older records, which have no scores, they are 1 for the
        correct answers and 0 for the others.
        """
        file = self.samples_file(step)
        return [
            as_record(Sample, {**line, "score": _score(line, file)}, f"{file}, line {number}")
            for number, line in enumerate(read_lines(file), 1)
        ]

    # ---- writing

    def write_config(self, text: str) -> None:
        write_atomic(self.config_file, text)

    def write_status(self, status: Status) -> None:
        write_atomic(self.status_file, json.dumps(asdict(status), indent=1) + "\n")

    def update_status(self, **changes: Any) -> Status:
        """Rewrites the status with `changes` and the current time as `updated`."""
        status = replace(self.status(), **changes, updated=now())
        self.write_status(status)
        return status

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomic(self.manifest_file, json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line in one write: a killed writer leaves at most a torn last line."""
        with open(self.metrics_file, "ab") as file:
            file.write(json_line(metrics).encode())

    def rewind(self, step: int) -> list[str]:
        """Removes the records after `step`, a torn last line and lines of metrics that cannot be read, so that a
        resumed run can write on; returns warnings about the last. -1 leaves no record. Finished answers stay where they
        are those of `step`, or of step 0 before there is a checkpoint.
        """
        warnings = []
        if self.metrics_file.exists():
            kept, damaged = _readable(read_bytes(self.metrics_file), self.metrics_file)
            if damaged:
                warnings.append(f"{damaged[0]}; {len(damaged)} such lines are left out, and the report will say so")
            lines = (json.dumps(line) + "\n" for line in kept if line["step"] <= step)
            write_atomic(self.metrics_file, "".join(lines))
        for files in (self.evaluations(), self.texts(), self.rollouts(), self.pages()):
            for written, file in files.items():
                if written > step:
                    file.unlink()
        for written, folder in self._by_step("evaluate", "batches").items():
            if written != max(step, 0):
                shutil.rmtree(folder, ignore_errors=True)
        return warnings

    def write_samples(self, step: int, samples: Iterable[Sample], texts: bytes = b"") -> None:
        """Writes the graded answers, and their texts as `opd.records.texts` packs them.

        A writer that is killed in between leaves answers without texts, never with those of another evaluation.
        """
        self.texts_file(step).unlink(missing_ok=True)
        write_atomic(self.samples_file(step), "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        if texts:
            write_atomic(self.texts_file(step), texts)

    def write_rollouts(self, step: int, data: Mapping[str, Any], page: str) -> None:
        write_atomic(self.rollouts_file(step), json.dumps(data, allow_nan=False) + "\n")
        write_atomic(self.page_file(step), page)


def _readable(content: bytes, file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of metrics that are records of a step, and what is wrong with the others but a torn last one."""
    kept, damaged = [], []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            record = parse_line(line, file, number)
            as_record(_Step, record, f"{file}, line {number}")
            kept.append(record)
        except RecordError as error:
            damaged.append(str(error))
    return kept, damaged


@dataclass(frozen=True)
class _Step:
    step: Count


def _score(line: Mapping[str, Any], file: Path) -> float:
    score = line.get("score", float(line.get("correct") is True))
    if type(score) not in (int, float) or not 0 <= score <= 1:
        raise RecordError(f"{file}: score is {printable(repr(score), limit=40)}, not a number from 0 to 1")
    return float(score)


def find_runs(root: Path, *, on_error: Callable[[OSError], None] | None = None) -> list[RunDir]:
    """Every run directory under `root` (one with a config, a status, a manifest or metrics), sorted by path.

    Skips hidden folders, in which sweeps keep copies of code and configs, and wandb's folder inside a run, which looks
    like a run. Skips a folder that cannot be listed, after a call of `on_error`.
    """
    runs = []
    for folder, folders, names in os.walk(root, onerror=on_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if _RECORDS & {*names, *folders}:  # a damaged record may be a folder
            runs.append(Path(folder))
            folders[:] = [name for name in folders if name != "wandb"]
    return [RunDir(path) for path in sorted(runs)]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys under which two configs differ, sorted. Mappings are compared key by key, lists as a whole."""
    changed, absent = [], object()
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, absent), new.get(key, absent)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{inner}" for inner in changed_keys(before, after)]
        elif before != after:
            changed.append(key)
    return changed
