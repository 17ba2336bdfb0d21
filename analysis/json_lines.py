"""Reads JSON lines as a table, fast where they have the form that runs write."""

import numpy as np
import pyarrow as pa
import pyarrow.json


def read_table(content: bytes, schema: pa.Schema, *, optional: frozenset[str]) -> pa.Table | None:
    """The columns of `schema`, one row a line; None where not every line is an object with values of these types.

    Only columns in `optional` may be missing or null. None is not an error: the slower reader of records decides then,
    as it does for anything that Arrow would accept or convert but that reader would not.
    """
    if not (content.startswith(b"{") and content.endswith(b"}\n") and content.isascii()):
        return None
    # One object a line: an object may neither span lines nor share one with the next.
    characters = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    lines = len(ends)
    if not ((characters[ends - 1] == ord("}")).all() and (characters[ends[:-1] + 1] == ord("{")).all()):
        return None
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(content),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        ).select(schema.names)
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError):
        return None
    if table.num_rows != lines or any(table[name].null_count for name in schema.names if name not in optional):
        return None
    floats = [table[field.name].drop_null().to_numpy() for field in schema if pa.types.is_floating(field.type)]
    return table.combine_chunks() if all(np.isfinite(values).all() for values in floats) else None
