"""The run directory: its schema, its writer and its reader. Nothing here imports torch.

    outputs/<study>/<name>-<8 hex of the config hash>-s<seed>/
      config.yaml  status.json  manifest.json  metrics.jsonl  checkpoints/  profile/rank_0.json.gz
      evaluate/step_000100.jsonl  evaluate/step_000100.text.jsonl.gz
      rollouts/step_000100.json  rollouts/step_000100.html

Every file is written whole and renamed, or appended a line at a time. A torn last line is dropped on reading.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from opd.config.identity import as_today

State = Literal["pending", "running", "preempted", "finished", "failed"]

# A sample of a run's evaluation: its benchmark, problem_id and sample.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Status:
    """`status.json`: what a run says of itself. Times are ISO 8601 in UTC."""

    state: State
    step: int
    num_steps: int
    error: str | None
    started: str
    updated: str
    host: str
    job_id: str | None
    attempts: int


@dataclass(frozen=True)
class Sample:
    """One graded answer: one line of `evaluate/step_*.jsonl`. What was said lies beside it (`opd.records.texts`).

    Attributes:
        benchmark, problem_id, sample: which problem, and which of its k answers.
        correct: whether the grader accepts it.
        score: how much of it is right by the grader, in [0, 1].
        answer, prediction: the right answer; what was found in the text, None where nothing was.
        num_tokens, truncated: the response's length; whether it hit the limit.

    Raises:
        ValueError: where `score` is not in [0, 1].
    """

    benchmark: str
    problem_id: str
    sample: int
    correct: bool
    score: float
    answer: str
    prediction: str | None
    num_tokens: int
    truncated: bool

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score is {self.score}, not a number from 0 to 1")

    @property
    def key(self) -> Key:
        return self.benchmark, self.problem_id, self.sample


class RecordError(ValueError):
    """A record that cannot be read; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class RunDir:
    """One run's directory. Reading drops a torn last line; anything else unreadable raises `RecordError`."""

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

    def rollouts_file(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.json"

    def page_file(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.html"

    def trace_file(self, rank: int) -> Path:
        """What torch's profiler saw of a rank, in Chrome's format."""
        return self.path / "profile" / f"rank_{rank}.json.gz"

    # ---- reading

    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return read_config(self.config_file)

    def status(self) -> Status:
        """What the run last said of itself."""
        raw = read_json(self.status_file)
        try:
            if raw["state"] not in get_args(State):
                raise RecordError(
                    f"{self.status_file}: {raw['state']!r} is no state; the states are {', '.join(get_args(State))}"
                )
            return Status(**{field.name: raw[field.name] for field in fields(Status)})
        except KeyError as error:
            raise RecordError(f"{self.status_file}: has no {error}") from error

    def manifest(self) -> dict[str, Any]:
        """What ran: code, packages, hardware."""
        return read_json(self.manifest_file)

    def metrics(self) -> list[dict[str, Any]]:
        """One object a step, in order; empty where the run has not made a step."""
        return list(read_lines(self.metrics_file)) if self.metrics_file.exists() else []

    def evaluations(self) -> dict[int, Path]:
        """Evaluated step → its samples file, in order of steps."""
        return self._by_step("evaluate", "jsonl")

    def texts(self) -> dict[int, Path]:
        """Step → the texts of its evaluation, in order, where they are kept; `opd.records.texts` reads them."""
        return self._by_step("evaluate", "text.jsonl.gz")

    def rollouts(self) -> dict[int, Path]:
        """Step → its record of rollouts, in order of steps."""
        return self._by_step("rollouts", "json")

    def pages(self) -> dict[int, Path]:
        """Step → its page of rollouts, in order of steps."""
        return self._by_step("rollouts", "html")

    def _by_step(self, folder: str, kind: str) -> dict[int, Path]:
        found = {}
        for file in (self.path / folder).glob(f"step_*.{kind}"):
            if match := re.fullmatch(rf"step_(\d{{6,}})\.{re.escape(kind)}", file.name):
                found[int(match[1])] = file
        return dict(sorted(found.items()))

    def samples(self, step: int) -> list[Sample]:
        """The graded answers of the evaluation at `step`. A record from before there were scores has 1 for the correct
        ones and 0 for the others.
        """
        file, names = self.samples_file(step), [field.name for field in fields(Sample)]
        lines: list[dict[str, Any]] = [{**line, "score": _score(line, file)} for line in read_lines(file)]
        try:
            return [Sample(**{name: line[name] for name in names}) for line in lines]
        except KeyError as error:
            raise RecordError(f"{file}: a line has no {error}") from error

    # ---- writing

    def write_config(self, text: str) -> None:
        write_whole(self.config_file, text)

    def write_status(self, status: Status) -> None:
        write_whole(self.status_file, json.dumps(asdict(status), indent=1) + "\n")

    def update_status(self, **changes: Any) -> Status:
        """Rewrites the status with `changes` and a new `updated`."""
        status = replace(self.status(), **changes, updated=now())
        self.write_status(status)
        return status

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_whole(self.manifest_file, json.dumps(manifest, indent=1, sort_keys=True) + "\n")

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line, whole: a killed writer leaves at most a torn last line."""
        with open(self.metrics_file, "ab") as file:
            file.write(json_line(metrics).encode())

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after `step`, and a torn last line, so that a resumed run writes it anew."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if self.metrics_file.exists():
            write_whole(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
        for found in (self.evaluations(), self.texts(), self.rollouts(), self.pages()):
            for written, file in found.items():
                if written > step:
                    file.unlink()

    def write_samples(self, step: int, samples: Iterable[Sample], texts: bytes = b"") -> None:
        """The graded answers, and what is kept of their texts, as `opd.records.texts` packs them.

        A writer that is killed between leaves answers without texts, never with those of another evaluation.
        """
        self.texts_file(step).unlink(missing_ok=True)
        write_whole(self.samples_file(step), "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        if texts:
            write_whole(self.texts_file(step), texts)

    def write_rollouts(self, step: int, data: Mapping[str, Any], page: str) -> None:
        write_whole(self.rollouts_file(step), json.dumps(data, allow_nan=False) + "\n")
        write_whole(self.page_file(step), page)


def _score(line: Mapping[str, Any], file: Path) -> float:
    score = line.get("score", float(line.get("correct") is True))
    if type(score) not in (int, float) or not 0 <= score <= 1:
        raise RecordError(f"{file}: score is {json.dumps(score)[:40]}, not a number from 0 to 1")
    return float(score)


def find_runs(root: Path, *, on_error: Callable[[OSError], None] | None = None) -> list[RunDir]:
    """Every run directory under `root` (one that holds a config, a status or a manifest), sorted by path.

    Hidden folders are left out: a sweep keeps copies of code and config in one. What wandb keeps inside a run, which
    looks like one, is none. A folder that cannot be listed is passed over, and `on_error` is told.
    """
    found = []
    for folder, folders, names in os.walk(root, onerror=on_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if {"config.yaml", "status.json", "manifest.json"} & {*names, *folders}:  # a damaged record may be a folder
            found.append(Path(folder))
            folders[:] = [name for name in folders if name != "wandb"]
    return [RunDir(path) for path in sorted(found)]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys under which two configs differ, sorted; a mapping is compared key by key, anything else whole."""
    changed = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{key}.{inner}" for inner in changed_keys(before, after)]
        elif before != after:
            changed.append(key)
    return changed


# ---- files


def now() -> str:
    """This moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_folder(folder: Path) -> None:
    """Makes `folder` and what it stands in, unless it is there; raises `OSError` whose number `opd.cli` explains."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # some file systems, as /proc, say so of what they do not let be made
        raise PermissionError(errno.EACCES, "No folder can be made there", str(folder)) from None


def write_whole(file: Path, content: str | bytes) -> None:
    """Writes `content` beside `file`, flushes it to disk, renames it: readers see the old file or the new one."""
    make_folder(file.parent)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def read_config(file: Path) -> dict[str, Any]:
    """A recorded config of any version, in YAML or JSON, as today's writes it, with nothing resolved; raises
    `RecordError`.
    """
    from io import StringIO

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from opd.config.plain_yaml import read_plain, refuse_endless

    content = read_bytes(file)
    try:
        if (plain := read_plain(content)) is not None:
            return as_today(plain)
        refuse_endless(content.decode())
        # Not resolved: a recorded config is, and a foreign one could name an environment variable.
        config = OmegaConf.to_container(OmegaConf.load(StringIO(content.decode())))
    except (ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise RecordError(f"{file}: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise RecordError(f"{file}: holds no mapping")
    return as_today(config)  # pyright: ignore[reportArgumentType]


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object; raises `RecordError`."""
    text = read_bytes(file)
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise RecordError(f"{file}: holds no JSON object")
    return content


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line. A torn last line (no newline) is dropped; any other bad one raises `RecordError`."""
    yield from parse_lines(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """A record's content. A pipe or device in its place, which might never end, is refused with `RecordError`."""
    try:
        kind = file.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise RecordError(f"{file}: is a pipe or a device")
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file}: {_reason(error)}") from error


def parse_lines(content: bytes, file: Path) -> Iterator[dict[str, Any]]:
    """`read_lines` of what `file` holds."""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        yield parse_line(line, file, number)


def parse_line(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """The JSON object that line `number` of `file` holds; raises `RecordError`."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}, line {number}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise RecordError(f"{file}, line {number}: holds no JSON object")
    return content


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON, which has no NaN or infinity: a number that is missing is written as null."""
    return json.dumps({key: None if _missing(value) else value for key, value in record.items()}) + "\n"


def _missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return (
        (text.splitlines()[0] if text else type(error).__name__)
        if not isinstance(error, OSError)
        else str(error.strerror)
    )


_ABSENT = object()
