"""The texts of an evaluation's responses, beside its samples. Nothing here imports torch.

A text, as it was graded, belongs to the sample with its `benchmark`, `problem_id` and `sample`. The first of a problem
has the problem's text beside it. Each problem's texts are a gzip member of their own, in the order
of the record: ranks pack their problems separately, and any number of ranks writes the same bytes.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import count
from typing import Any

from opd.records.files import RecordError, parse_line, read_bytes
from opd.records.run_dir import Key, RunDir

# Bytes of an unpacked line. A million tokens take less; a foreign file of a few kB might unpack to fill the memory.
LONGEST = 2**26

_KINDS: dict[str, type] = {"benchmark": str, "problem_id": str, "sample": int, "text": str}


def pack(benchmark: str, problem_id: str, texts: Sequence[str], *, problem: str) -> bytes:
    """Packs a problem's texts in the order of its samples: gzipped JSON lines, the same bytes for the same texts."""
    lines = (
        {"benchmark": benchmark, "problem_id": problem_id, "sample": sample, "text": text}
        | ({} if sample else {"problem": problem})
        for sample, text in enumerate(texts)
    )
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), 6, mtime=0) if texts else b""


def read_texts(run: RunDir, step: int) -> Iterator[tuple[Key, str]]:
    """Yields (`Sample.key`, text) of the evaluation at `step` in the order of the record, as far as texts are kept;
    nothing where there is no file. Unpacks one line at a time.

    Raises:
        RecordError: as `read_answers`.
    """
    return ((key, text) for key, text, _ in read_answers(run, step))


def read_answers(run: RunDir, step: int) -> Iterator[tuple[Key, str, str | None]]:
    """Yields what `read_texts` does and the problem's text, which only the first of a problem has, and no older record.

    Raises:
        RecordError: where the file is damaged or cut off, or a line is longer than `LONGEST` or has other fields.
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
        benchmark, problem_id, sample, text = (
            _value(data, name, f"{file}, line {number}", kind) for name, kind in _KINDS.items()
        )
        problem = _value(data, "problem", f"{file}, line {number}", str) if "problem" in data else None
        yield (benchmark, problem_id, sample), text, problem


def _value(data: dict[str, Any], name: str, where: str, kind: type) -> Any:
    if type(data.get(name)) is not kind:
        raise RecordError(f"{where}: has no {name} of type {kind.__name__}")
    return data[name]
