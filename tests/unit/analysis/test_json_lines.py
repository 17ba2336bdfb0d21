import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from analysis.json_lines import read_table
from opd.records.files import json_line

SCHEMA = pa.schema([("step", pa.int64()), ("loss", pa.float64()), ("name", pa.string()), ("right", pa.bool_())])
OPTIONAL = frozenset({"loss", "name"})
TYPES = {"step": int, "loss": (float, int), "name": str, "right": bool}
LINE = '{"step": 1, "loss": 0.5, "name": "a, {b}", "right": true, "more": [{}, "x"]}'


def read(content: bytes) -> list[dict] | None:
    table = read_table(content, SCHEMA, optional=OPTIONAL)
    return None if table is None else table.to_pylist()


def by_json(content: bytes) -> list[dict]:
    """What `json` makes of each line; raises where a line is not what the schema says."""
    rows = []
    for line in content.decode().split("\n")[:-1]:
        found = json.loads(line)
        row = {name: found.get(name) for name in SCHEMA.names}
        for name, value in row.items():
            if value is None:
                assert name in OPTIONAL
            else:
                assert isinstance(value, TYPES[name]) and (name == "right") == isinstance(value, bool)
            if name == "loss" and value is not None:
                row[name] = float(value)
                assert math.isfinite(row[name])
        rows.append(row)
    return rows


ROW = st.fixed_dictionaries(
    {"step": st.integers(0, 2**63 - 1), "right": st.booleans()},
    optional={
        "loss": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 5)),
        "name": st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))),
        "time/step": st.floats(),
    },
)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1))
def test_lines_as_runs_write_them_are_read_and_are_what_json_reads(rows):
    content = "".join(map(json_line, rows)).encode()
    assert read(content) == by_json(content)


@settings(deadline=None, max_examples=500)
@given(st.lists(ROW, min_size=1, max_size=3), st.data())
def test_of_damaged_lines_nothing_is_read_that_json_does_not_read(rows, data):
    content = bytearray("".join(json.dumps(row) + "\n" for row in rows).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "put"]))
        if kind == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif kind == "put":
            content[at:at] = data.draw(st.sampled_from([b"\n", b"{", b"}", b"}\n{", b'"', b" ", b"0", b"-", b"NaN"]))
        else:
            content[at] = data.draw(st.integers(0, 255))
        if not content:
            return
    found = read(bytes(content))
    if found is not None:
        assert repr(found) == repr(by_json(bytes(content)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        LINE,
        LINE + "\n\n",
        "\n" + LINE + "\n",
        LINE + LINE + "\n",
        LINE + LINE + "\n\n",
        LINE[:20] + "\n" + LINE[20:] + LINE + "\n",
        LINE.replace("0.5", "NaN") + "\n",
        LINE.replace("0.5", "Infinity") + "\n",
        LINE.replace("0.5", "1e999") + "\n",
        LINE.replace("0.5", "1" + "0" * 400) + "\n",
        LINE.replace("0.5", '"0.5"') + "\n",
        LINE.replace("0.5", "true") + "\n",
        LINE.replace('"step": 1', '"step": 1.0') + "\n",
        LINE.replace('"step": 1', '"step": 1' + "0" * 30) + "\n",
        LINE.replace('"step": 1', '"step": null') + "\n",
        LINE.replace('"step": 1, ', "") + "\n",
        LINE.replace('"step": 1', '"step": 1, "step": 2') + "\n",
        LINE.replace("true", "1") + "\n",
        LINE.replace("a, {b}", "\\ud800") + "\n",
        LINE.replace("a, {b}", "é") + "\n",
        LINE + "\r\n",
    ],
)
def test_what_is_not_plain_is_left_to_the_careful_reader(text):
    assert read(text.encode()) is None
    assert read((LINE + "\n").encode()) is not None
