"""The recorded rollouts of a step: tokens to show and the histogram of log-ratios. Everything read is checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opd.printable import printable
from opd.records.files import RecordError, read_json
from opd.records.run_dir import RunDir

# At most: responses of a step, tokens of a response, characters of a token, bins of a histogram.
RESPONSES, TOKENS, CHARACTERS, BINS = 4, 400, 40, 1000


@dataclass(frozen=True)
class Response:
    """A problem and the first `TOKENS` tokens of a response, `left_out` more of which follow.

    `log_ratio` is log(π_student / π_reference). A missing number is None.
    """

    problem: str
    tokens: list[str]
    advantage: list[float | None]
    log_ratio: list[float | None]
    learned: list[bool]
    left_out: int


@dataclass(frozen=True)
class Rollouts:
    """The first `RESPONSES` responses of a step, and the histogram of the log-ratios of all its tokens.

    Attributes:
        step: the optimizer step.
        responses: in the order of the record.
        low, high: the ends of the histogram, whose bins have one width.
        counts: number of tokens in each bin; `below` and `above`, those beyond the ends.
    """

    step: int
    responses: tuple[Response, ...]
    low: float
    high: float
    counts: tuple[int, ...]
    below: int
    above: int


def read_rollouts(run: RunDir, step: int) -> Rollouts:
    """Reads the record of `step`; raises `RecordError`."""
    file = run.rollouts_file(step)
    return parse_rollouts(read_json(file), step, str(file))


def parse_rollouts(data: Mapping[str, Any], step: int, where: str) -> Rollouts:
    """Parses a record that was read from `where`; raises `RecordError`, which names it."""
    try:
        histogram = data["log_ratio"]
        counts = tuple(_count(value) for value in histogram["counts"])
        low, high = float(histogram["low"]), float(histogram["high"])
        if not 0 < len(counts) <= BINS or not -math.inf < low < high < math.inf:
            raise ValueError("its histogram has no bins")
        responses = tuple(_response(response) for response in data["responses"][:RESPONSES])
        return Rollouts(step, responses, low, high, counts, _count(histogram["below"]), _count(histogram["above"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{where}: is not a record of rollouts ({printable(str(error), limit=80)})") from error


def as_record(rollouts: Rollouts) -> dict[str, Any]:
    """The record that `parse_rollouts` parses to `rollouts`."""
    histogram = {name: getattr(rollouts, name) for name in ("low", "high", "counts", "below", "above")}
    return {"log_ratio": histogram, "responses": [asdict(response) for response in rollouts.responses]}


def _response(data: Mapping[str, Any]) -> Response:
    names = ("tokens", "advantage", "log_ratio", "learned")
    rows = list(zip(*(data[name][:TOKENS] for name in names), strict=True))
    left_out = _count(data.get("left_out", 0)) + max(0, len(data["tokens"]) - TOKENS)
    return Response(
        printable(str(data["problem"]), limit=300),
        [_text(row[0]) for row in rows],
        [_number(row[1]) for row in rows],
        [_number(row[2]) for row in rows],
        [row[3] is True for row in rows],
        left_out,
    )


def _text(text: Any) -> str:
    """A token on one line: a line break is shown as ↵, and blanks are kept."""
    pieces = str(text)[:CHARACTERS].replace("\n", "↵").split(" ")
    return " ".join(printable(piece, limit=CHARACTERS) for piece in pieces) or "∅"


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a count")
    return value
