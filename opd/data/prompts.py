"""Problems from the Hugging Face Hub or a JSONL file, the prompts made of them, and their order."""

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

import numpy as np

from opd.config.schema import Dataset
from opd.data import hub
from opd.data.environment import Environment, Message
from opd.data.problem import Problem
from opd.data.template import render
from opd.errors import UserError
from opd.grading.answer import plain

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import PreTrainedTokenizerBase

    from opd.data.batch import Prompt

# The project's own field names: a JSONL file may use them whatever the fields of the hub's copy are called.
OWN_FIELDS = {"problem_field": "problem", "answer_field": "answer", "id_field": "id"}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.A)

# What stands before the final answer in GSM8K's worked solutions.
ANSWER_MARK = "####"


def load_problems(source: Dataset, *, data_dir: Path | None) -> list[Problem]:
    """The problems of `source`: of its `file` where that exists (as given, or under `data_dir`), else of its `hub`.

    A line of a file names its fields as `source` does, or `id`, `problem` and `answer`. A problem without an id gets
    one from the set's name and its place. Of a worked solution ending in "#### 72", the 72 is the answer.

    Raises:
        UserError: where there is neither file nor hub, the set cannot be loaded or is empty, or a line or row is
            damaged: not JSON, a field missing, empty or not text, an id given twice.
    """
    file = _find(source, data_dir)
    name = file.stem if file else f"{str(source.hub).rpartition('/')[2]}-{source.split}"
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for place, number, row in islice(read_jsonl(file) if file else _rows(source), source.limit):
        if source.id_field is None and not (file and "id" in row):
            key = f"{name}-{number:05d}"
        else:
            key = _text(row, place, "id_field", source, own=file is not None)
        if key in places:
            raise UserError(f"{place}: the id {key!r} was already given at {places[key]}; every problem needs its own")
        places[key] = place
        answer = _text(row, place, "answer_field", source, own=file is not None)
        if ANSWER_MARK in answer:
            answer = plain(answer.rpartition(ANSWER_MARK)[2].strip())
            if not answer:
                raise UserError(f"{place}: nothing follows {ANSWER_MARK!r} in the answer")
        problem = _text(row, place, "problem_field", source, own=file is not None)
        problems.append(Problem(id=key, problem=problem, answer=answer, domain=source.domain))
    if not problems:
        raise UserError(f"{file or source.hub}: has no problems")
    return problems


def encode(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: Literal["chat", "raw"],
    system: str | None,
    prefix: str,
    suffix: str,
    max_prompt_length: int,
    environment: Environment,
    date: datetime | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> "tuple[list[Prompt], list[str]]":
    """Prompts as the student sees them, and the ids of the problems left out because theirs is too long.

    A conversation begins as `environment` says, with prefix and suffix around its last message. `raw` continues its
    texts; `chat` puts them (after a system turn where `system` is given) into the tokenizer's chat template, which may
    ask for the `date`, and opens the assistant's turn. `notice` gets a sentence where the tokens of prompts stand for
    other texts than these.

    Raises:
        UserError: where the tokenizer has no chat template or its template refuses the turns, `system` is given
            without one, a prompt is empty, ends with an end-of-text token or begins with two beginnings, or all are
            too long.
    """
    from opd.data.batch import Prompt

    begun = [
        [*turns[:-1], {**turns[-1], "content": prefix + turns[-1]["content"] + suffix}]
        for turns in environment.start(problems)
    ]
    if template == "chat":
        before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        texts = render(tokenizer, [[*before, *turns] for turns in begun], key="prompts.template", date=date)
    elif system is not None:
        raise UserError("prompts.system: a raw prompt has no system turn; use prompts.template=chat or prompts.prefix")
    else:
        texts = [_joined(turns) for turns in begun]
    # A template writes the beginning of a text itself.
    encoded: Any = tokenizer(texts, add_special_tokens=template == "raw")["input_ids"] if texts else []
    changes = [
        (problem.id, change)
        for problem, text, token_ids in zip(problems, texts, encoded, strict=True)
        if (change := _change(text, token_ids, tokenizer))
    ]
    if changes:
        first, (given, seen) = changes[0]
        notice(
            f"the tokenizer changes the text of {len(changes)} of {len(texts)} prompts, and the models answer what it "
            f"makes of them: in the first of them, {first}, {seen!r} stands for {given!r}"
        )
    prompts, dropped = [], []
    for problem, token_ids in zip(problems, encoded, strict=True):
        if not token_ids:
            raise UserError(f"problem {problem.id!r}: the tokenizer produces no tokens for it")
        _check_ends(problem, token_ids, tokenizer, template)
        if len(token_ids) > max_prompt_length:
            dropped.append(problem.id)
        else:
            prompts.append(Prompt(**vars(problem), token_ids=tuple(token_ids)))
    if dropped and not prompts:
        shortest = min(len(token_ids) for token_ids in encoded)
        raise UserError(
            f"prompts.max_prompt_length={max_prompt_length}: all {len(dropped)} prompts are longer, "
            f"the shortest has {shortest} tokens"
        )
    return prompts, dropped


def _check_ends(
    problem: Problem, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", template: Literal["chat", "raw"]
) -> None:
    """Refuses a prompt that a tokenizer or template has closed: what follows it would be another text."""
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    if token_ids[-1] in ends:
        token = tokenizer.convert_ids_to_tokens(token_ids[-1])
        cause = (
            "its chat template closes the turn that the model should answer in"
            if template == "chat"
            else "its tokenizer adds that (add_eos_token), or prompts.suffix does"
        )
        raise UserError(
            f"problem {problem.id!r}: its prompt ends with {token!r}, after which no answer follows; {cause}"
        )
    first = tokenizer.bos_token_id
    if first is not None and first not in ends and list(token_ids[:2]) == [first, first]:
        raise UserError(
            f"problem {problem.id!r}: its prompt begins with {tokenizer.bos_token!r} twice; leave it out of "
            "prompts.prefix"
        )


def _change(text: str, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str] | None:
    """Where the tokens first stand for another text: a few characters of the text and of the other.

    Not counted: the form of accents, spaces around the text, what a tokenizer puts before every text, and characters
    that it does not know, which `unreadable` finds.
    """
    if tokenizer.unk_token_id in token_ids:
        return None
    wanted, changes = normalize("NFC", text).strip(), []
    for skip in (False, True):
        decoded: Any = tokenizer.decode(list(token_ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        found = normalize("NFC", decoded).strip()
        if wanted in found:
            return None
        at = next((at for at, (one, other) in enumerate(zip(wanted, found, strict=False)) if one != other), len(found))
        changes.append((at, wanted[at : at + 12], found[at : at + 12]))
    return max(changes)[1:]


def unreadable(prompts: "Sequence[Prompt]", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The ids of prompts with a token for what the tokenizer does not know: the model does not see what is there."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return []
    return [prompt.id for prompt in prompts if unknown in prompt.token_ids]


def epoch_order(num_prompts: int, *, seed: int, epoch: int) -> "Int[np.ndarray, ' prompt']":
    """A permutation of range(num_prompts): the indices sorted by 64 random bits each, drawn from (seed, epoch).

    Raw bits of a Philox stream, which NumPy keeps the same between versions (its `permutation` may change).
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_prompts)
    return np.argsort(bits, kind="stable")


def batch_indices(num_prompts: int, *, batch_size: int, step: int, seed: int) -> list[int]:
    """The prompts of the `step`-th batch, from 0, of an endless run of epochs; each epoch holds every prompt once.

    A batch may end one epoch and begin the next; a prompt is never twice in a batch.

    Raises:
        ValueError: where a batch is larger than the set, or `step` is negative.
    """
    if not 0 < batch_size <= num_prompts or step < 0:
        raise ValueError(f"no batch {step} of {batch_size} prompts from a set of {num_prompts}")
    epoch, first = divmod(step * batch_size, num_prompts)
    ending = _order(num_prompts, batch_size, seed, epoch)[first : first + batch_size]
    if len(ending) == batch_size:
        return ending.tolist()
    return [*ending.tolist(), *_order(num_prompts, batch_size, seed, epoch + 1)[: batch_size - len(ending)].tolist()]


# ---- order


@lru_cache(maxsize=2)
def _order(num_prompts: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """`epoch_order`, with the prompts that the batch across the last epoch's end has already seen moved behind it."""
    # An epoch's order depends on the previous one's, back to the last epoch that began with a batch.
    aligned = epoch - epoch % (batch_size // math.gcd(num_prompts, batch_size))
    order = epoch_order(num_prompts, seed=seed, epoch=aligned)
    for each in range(aligned + 1, epoch + 1):
        shared = each * num_prompts % batch_size  # prompts of the previous epoch in the batch across its end
        seen, order = order[num_prompts - shared :], epoch_order(num_prompts, seed=seed, epoch=each)
        first = np.flatnonzero(~np.isin(order, seen))[: batch_size - shared]
        order = np.concatenate([order[first], np.delete(order, first)])
    return order


# ---- reading


def _find(source: Dataset, data_dir: Path | None) -> Path | None:
    candidates = [] if source.file is None else [Path(source.file), *([data_dir / source.file] if data_dir else [])]
    for file in candidates:
        if file.is_file():
            return file
    if source.hub is None:
        if not candidates:
            raise UserError("a prompt set needs a file= (JSONL) or a hub= (dataset on the Hugging Face Hub)")
        where = " nor ".join(map(str, candidates))
        where = f"neither {where} exists" if candidates[1:] else f"{where} does not exist"
        raise UserError(f"file={source.file}: {where}, and there is no hub= to load the set from")
    return None


def read_jsonl(file: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(place to name in a message, line number, object) of each line that is not blank; raises `UserError`."""
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: is not JSON ({str(error).splitlines()[0]})") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: is not a JSON object")
        yield place, number, row


def _rows(source: Dataset) -> Iterator[tuple[str, int, dict[str, Any]]]:
    part = ", ".join(
        f"{key} {value}"
        for key, value in (("config", source.config), ("split", source.split), ("revision", source.revision))
        if value is not None
    )
    dataset = _download(source, part)
    wanted = [field for field in (source.problem_field, source.answer_field, source.id_field) if field is not None]
    names = dataset.column_names  # a stream may not know them before its first row
    for field in wanted if names else []:
        if field not in names:
            raise UserError(f"{source.hub} ({part}): has no field {field!r}; its fields are {', '.join(names)}")
    rows = iter(dataset.select_columns(list(dict.fromkeys(wanted))) if names else dataset)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a stream is read on demand, and the connection may be lost meanwhile
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source.hub} ({part}), row {number}: cannot be read: {reason}") from error
        yield f"{source.hub} ({part}), row {number}", number, row


def _download(source: Dataset, part: str) -> Any:
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as LOADERS

    # The library takes other names for local paths: a folder to read, or a script that reads one.
    if source.hub in LOADERS or not _HUB_ID.fullmatch(str(source.hub)):
        raise UserError(
            f"hub={source.hub}: is not the name of a Hugging Face Hub dataset (OWNER/NAME); give a file of your own as "
            "file= (JSONL)"
        )
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)  # six lines a lost connection: the refusal below says it in one
    config.HF_HUB_OFFLINE = not hub.reachable()
    try:
        return datasets.load_dataset(
            str(source.hub), source.config, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except DatasetNotFoundError as error:
        why, cause = "does not exist or is private", error
    except (ConnectionError, TimeoutError) as error:
        why, cause = "cannot be reached", error
    except Exception as error:  # the client raises many kinds for a split, subset or file that is not there
        why, cause = f"cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0]}", error
    finally:
        client.setLevel(level)
    no_file = f", and there is no file {source.file}" if source.file else ""
    raise UserError(
        f"hub={source.hub} ({part}) {why} on the Hugging Face Hub{no_file}; a JSONL file given as "
        "file= needs no network"
    ) from cause


def _text(row: dict[str, Any], place: str, key: str, source: Dataset, *, own: bool) -> str:
    field = getattr(source, key)
    if own and (field is None or field not in row):
        field = OWN_FIELDS[key] if OWN_FIELDS[key] in row or field is None else field
    if field not in row:
        raise UserError(f"{place}: has no field {field!r} ({key}); its fields are {', '.join(map(repr, row))}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: the field {field!r} contains {type(value).__name__}, not text")
    text = str(value) if key == "problem_field" else str(value).strip()
    if not text.strip():
        raise UserError(f"{place}: the field {field!r} is empty")
    return text


def reply_ids(
    before: Sequence[Message],
    reply: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: Literal["chat", "raw"],
    date: datetime | None = None,
) -> list[int]:
    """The tokens of a reply after the conversation `before`, which ends with a turn of the model's; the chat template
    closes that turn where it was left open, and opens the model's next one.

    Raises:
        UserError: where the chat template writes earlier turns differently once a later one is there.
    """
    if template == "raw":
        return tokenizer(_joined(reply), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]
    [everything] = render(tokenizer, [[*before, *reply]], key="prompts.template", date=date)
    [closed] = render(tokenizer, [before], key="prompts.template", date=date, opened=False)
    # Sampled tokens end with the turn's end; what a template puts after that, mostly a line break, was not sampled.
    closed = closed.rstrip()
    if not everything.startswith(closed):
        raise UserError("prompts.template=chat: the chat template rewrites earlier turns when a reply is added")
    return tokenizer(everything[len(closed) :], add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _joined(turns: Sequence[Message]) -> str:
    return "".join(turn["content"] for turn in turns)
