"""A step's record of rollouts → tokens to show and the histogram of log-ratios. All of it is checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.text import printable
from opd.records.run_dir import RecordError, RunDir, read_json

RESPONSES, TOKENS, TOKEN, BINS = 4, 400, 40, 1000  # of a run, of a response, of a token in letters, of a histogram


@dataclass(frozen=True)
class Token:
    """One sampled token. `log_ratio` = log(π_student / π_reference); a number that is missing is None."""

    text: str
    advantage: float | None
    log_ratio: float | None
    learned: bool


@dataclass(frozen=True)
class Response:
    """What was asked and the first `TOKENS` tokens of the answer; `left_out` more follow."""

    problem: str
    tokens: tuple[Token, ...]
    left_out: int


@dataclass(frozen=True)
class Rollouts:
    """The first `RESPONSES` responses of a step, and how many of all its tokens have which log-ratio.

    Attributes:
        step: the optimizer step.
        responses: in the order of the record.
        low, high: the ends of the histogram; its bins are equal.
        counts: of tokens in each bin. `below` and `above` are those beyond its ends.
    """

    step: int
    responses: tuple[Response, ...]
    low: float
    high: float
    counts: tuple[int, ...]
    below: int
    above: int


def read_rollouts(run: RunDir, step: int) -> Rollouts:
    """The record of `step`; raises `RecordError` where it is not one."""
    file = run.rollouts_file(step)
    return parse_rollouts(read_json(file), step, str(file))


def parse_rollouts(data: Mapping[str, Any], step: int, where: str) -> Rollouts:
    """A record as it was read from `where`, which the `RecordError` names that is raised where it is none."""
    try:
        found = data["log_ratio"]
        counts = tuple(_count(value) for value in found["counts"])
        low, high = float(found["low"]), float(found["high"])
        if not 0 < len(counts) <= BINS or not -math.inf < low < high < math.inf:
            raise ValueError("its histogram has no bins")
        return Rollouts(
            step,
            tuple(_response(response) for response in data["responses"][:RESPONSES]),
            low,
            high,
            counts,
            _count(found["below"]),
            _count(found["above"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{where}: is no record of rollouts ({printable(str(error), limit=80)})") from error


def as_record(rollouts: Rollouts) -> dict[str, Any]:
    """The record of which `parse_rollouts` makes `rollouts`; of tokens left out it says how many."""
    return {
        "log_ratio": {name: getattr(rollouts, name) for name in ("low", "high", "counts", "below", "above")},
        "responses": [
            {
                "problem": response.problem,
                "tokens": [token.text for token in response.tokens],
                "advantage": [token.advantage for token in response.tokens],
                "log_ratio": [token.log_ratio for token in response.tokens],
                "learned": [token.learned for token in response.tokens],
                "left_out": response.left_out,
            }
            for response in rollouts.responses
        ],
    }


def _response(data: Mapping[str, Any]) -> Response:
    columns = [data[name] for name in ("tokens", "advantage", "log_ratio", "learned")]
    tokens = [
        Token(_text(text), _number(advantage), _number(log_ratio), learned is True)
        for text, advantage, log_ratio, learned in zip(*(column[:TOKENS] for column in columns), strict=True)
    ]
    more = _count(data.get("left_out", 0))
    return Response(printable(str(data["problem"]), limit=300), tuple(tokens), more + max(0, len(columns[0]) - TOKENS))


def _text(text: Any) -> str:
    """A token on one line: a line break is shown as ↵, and blanks are kept."""
    pieces = str(text)[:TOKEN].replace("\n", "↵").split(" ")
    return " ".join(printable(piece, limit=TOKEN) for piece in pieces) or "∅"


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no count")
    return value
