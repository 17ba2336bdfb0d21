"""What was said: the texts of an evaluation's responses, beside its samples. Nothing here imports torch.

A text, as it was graded, belongs to the sample with its `benchmark`, `problem_id` and `sample`. Each problem's texts
are a gzip member of their own and the file is these in the order of the record, so that ranks pack theirs apart and
any number of them writes the same bytes.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import count
from typing import Any

from opd.records.run_dir import Key, RecordError, RunDir, parse_line, read_bytes

# What a line may take unpacked. A million tokens take less; a foreign file of a few kB may unpack to all the memory.
LONGEST = 2**26

_KINDS: dict[str, type] = {"benchmark": str, "problem_id": str, "sample": int, "text": str}


def pack(benchmark: str, problem_id: str, texts: Sequence[str]) -> bytes:
    """A problem's texts in the order of its samples: JSON lines, as gzip; the same bytes for the same texts."""
    lines = (
        {"benchmark": benchmark, "problem_id": problem_id, "sample": sample, "text": text}
        for sample, text in enumerate(texts)
    )
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), 6, mtime=0) if texts else b""


def read_texts(run: RunDir, step: int) -> Iterator[tuple[Key, str]]:
    """`Sample.key` → text of the evaluation at `step`, as far as texts are kept, in the order of the record; none where
    there is no file. Unpacked a line at a time, as they are asked for.

    Raises:
        RecordError: where the file is damaged or cut off, or a line is longer than `LONGEST` or holds something else.
    """
    file = run.texts_file(step)
    if not file.exists():
        return
    unpacked = gzip.GzipFile(fileobj=BytesIO(read_bytes(file)))
    for number in count(1):
        try:
            line = unpacked.readline(LONGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise RecordError(f"{file}: is damaged or cut off ({error})") from error
        if not line and number == 1:
            raise RecordError(f"{file}: is empty")
        if not line:
            return
        if len(line) > LONGEST:
            raise RecordError(f"{file}, line {number}: is longer than {LONGEST} bytes")
        if not line.endswith(b"\n"):
            raise RecordError(f"{file}, line {number}: is cut off")
        data = parse_line(line, file, number)
        benchmark, problem_id, sample, text = (_value(data, name, f"{file}, line {number}") for name in _KINDS)
        yield (benchmark, problem_id, sample), text


def _value(data: dict[str, Any], name: str, where: str) -> Any:
    if type(data.get(name)) is not _KINDS[name]:
        raise RecordError(f"{where}: has no {name} of type {_KINDS[name].__name__}")
    return data[name]
