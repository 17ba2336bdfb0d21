"""Problems made of the rows of a dataset, as its source names their fields."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from opd.config.schema import Dataset
from opd.data import rows
from opd.data.problem import Problem, Turns
from opd.errors import UserError
from opd.grading.answer import plain

# The project's own field names: a file may use them whatever the fields of the hub's copy are called.
OWN_FIELDS = {"problem_field": "problem", "answer_field": "answer", "id_field": "id"}

# What stands before the final answer in GSM8K's worked solutions.
ANSWER_MARK = "####"

# {FIELD} in a source's `problem`; {{ and }} are braces, and so is {}.
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")

_ROLES = ("system", "user", "assistant", "tool")


def load_problems(source: Dataset, *, data_dir: Path | None, graded: str | None = None) -> list[Problem]:
    """The problems of `source`: of its `file` where that exists (as given, or under `data_dir`), else of its `hub`.

    A row of a file names its fields as `source` does, or `id`, `problem` and `answer`. A problem without an id gets
    one from the set's name and its place. Of a worked solution ending in "#### 72", the 72 is the answer. `graded` is
    the config key that wants answers; without one a problem may have none, and its answer is then empty.

    Raises:
        UserError: where there is neither file nor hub, the set cannot be loaded or is empty, or a row is damaged: not
            JSON, a field missing, empty or not text, an id given twice.
    """
    file = rows.find(source, data_dir)
    name = file.stem if file else f"{str(source.hub).rpartition('/')[2]}-{source.split}"
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for place, number, row in islice(_chosen(source, file, graded), source.limit):
        key = _id(row, place, source, own=file is not None) or f"{name}-{number:05d}"
        if key in places:
            raise UserError(f"{place}: the id {key!r} was already given at {places[key]}; every problem needs its own")
        places[key] = place
        answer = _answer(row, place, source, own=file is not None, graded=graded)
        problem, earlier = _problem(row, place, source, own=file is not None)
        problems.append(Problem(id=key, problem=problem, answer=answer, domain=source.domain, earlier=earlier))
    if not problems:
        few = f" with {', '.join(source.where)} as where= says" if source.where else ""
        raise UserError(f"{file or source.hub}: has no problems{few}")
    return problems


def _chosen(source: Dataset, file: Path | None, graded: str | None) -> Iterator[rows.Row]:
    """The rows that `where` asks for."""
    if file is not None:
        found = rows.read_file(file)
    else:
        shown = [source.problem_field] if source.problem is None else _fields(source.problem)
        optional = [OWN_FIELDS["id_field"], *([] if graded else [OWN_FIELDS["answer_field"]])]
        named = [field for field in (source.answer_field, source.id_field) if field is not None]
        needed = [*shown, *source.where, *(field for field in named if field not in optional)]
        found = rows.read_hub(source, needed=needed, useful=named)
    for place, number, row in found:
        for field, values in source.where.items():
            if field not in row:
                raise UserError(f"{place}: has no field {field!r} (where); {_has(row)}")
            if _as_text(row[field]) not in values:
                break
        else:
            yield place, number, row


def _as_text(value: Any) -> str:
    """A value as `where` has it: as JSON writes it, texts without quotes."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _id(row: Mapping[str, Any], place: str, source: Dataset, *, own: bool) -> str | None:
    """The row's id; None where it has none, and no field of another name than ours was named for it."""
    field = _field_of(row, "id_field", source, own=own)
    if field is None or (field == OWN_FIELDS["id_field"] and field not in row):
        return None
    return _text(row, place, "id_field", source, own=own)


def _answer(row: Mapping[str, Any], place: str, source: Dataset, *, own: bool, graded: str | None) -> str:
    try:
        if source.answer_field is None:
            raise UserError(f"{place}: has no answer, because answer_field is null")
        answer = _text(row, place, "answer_field", source, own=own)
        if ANSWER_MARK in answer:
            answer = plain(answer.rpartition(ANSWER_MARK)[2].strip())
            if not answer:
                raise UserError(f"{place}: nothing follows {ANSWER_MARK!r} in the answer")
        return answer
    except UserError as error:
        if graded is not None:
            raise UserError(f"{error}; {graded} needs an answer to each problem") from None
        return ""


def _problem(row: Mapping[str, Any], place: str, source: Dataset, *, own: bool) -> tuple[str, Turns]:
    """The problem, and the turns of its conversation before it."""
    if source.problem is not None:
        return _filled(source.problem, row, place), ()
    field = _field_of(row, "problem_field", source, own=own)
    if isinstance(row.get(field), list):
        return _conversation(row[field], f"{place}: the field {field!r}")
    return _text(row, place, "problem_field", source, own=own), ()


def _filled(template: str, row: Mapping[str, Any], place: str) -> str:
    """The template with the row's fields in it."""

    def field(found: re.Match[str]) -> str:
        if (name := found[1]) is None:
            return found[0][0]
        value: Any = row
        for part in [name] if name in row else name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(
                    f"{place}: has no field {name!r}, which problem= names; {_has(row)}, and braces that name no field "
                    "are written {{ and }}"
                )
            value = value[part]
        return _shown(value, name, place)

    text = _FIELD.sub(field, template)
    if not text.strip():
        raise UserError(f"{place}: the fields of problem= are empty")
    return text


def _fields(template: str) -> list[str]:
    """The fields of a row that a template names."""
    return [name.partition(".")[0] for name in _FIELD.findall(template) if name]


def _shown(value: Any, name: str, place: str) -> str:
    """A field's value in a prompt: a list as choices, a line each, with letters before them."""
    if isinstance(value, list) and 0 < len(value) <= len(ascii_uppercase):
        texts = [_shown(each, name, place) for each in value if not isinstance(each, list)]
        if len(texts) == len(value):
            return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: the field {name!r} contains {type(value).__name__}, not text or a list of texts")
    return str(value)


def _conversation(turns: Sequence[Any], what: str) -> tuple[str, Turns]:
    """The last question of a conversation, and the turns before it; answers after it are left out."""
    read = []
    for number, turn in enumerate(turns, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise UserError(
                f"{what}, turn {number}: should be an object with a role ({', '.join(_ROLES)}) and a content"
            )
        read.append((role, content))
    while read and read[-1][0] == "assistant":
        read.pop()
    if not read or read[-1][0] != "user" or not read[-1][1].strip():
        raise UserError(f"{what}: has no turn of the user's for the student to answer")
    return read[-1][1], tuple(read[:-1])


def _field_of(row: Mapping[str, Any], key: str, source: Dataset, *, own: bool) -> Any:
    """The field's name in this row, if any: as the source has it, or, in a file, ours."""
    field = getattr(source, key)
    ours = own and (field is None or (field not in row and OWN_FIELDS[key] in row))
    return OWN_FIELDS[key] if ours else field


def _text(row: Mapping[str, Any], place: str, key: str, source: Dataset, *, own: bool) -> str:
    field = _field_of(row, key, source, own=own)
    if field not in row:
        raise UserError(f"{place}: has no field {field!r} ({key}); {_has(row)}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: the field {field!r} contains {type(value).__name__}, not text")
    text = str(value) if key == "problem_field" else str(value).strip()
    if not text.strip():
        raise UserError(f"{place}: the field {field!r} is empty")
    return text


def _has(row: Mapping[str, Any]) -> str:
    return f"its fields are {', '.join(map(repr, row))}"
