"""A table of the report, and its cells, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from pandas.api.types import is_float_dtype, is_string_dtype

from analysis.arms import Arm
from analysis.text import csv_cell, latex, markdown

MISSING = "–"
TEXTS = ("text", "prose")  # prose: some sentences, in a cell of several lines
_LATEX = {"text": "l", "prose": "p{5cm}"}  # kind → how its column is set
Kind = Literal["text", "prose", "number", "percent", "points", "tokens", "decimal"]


@dataclass(frozen=True)
class Field:
    """One column of a table. With `interval`, the frame also has `<key>_low` and `<key>_high`."""

    key: str
    label: str
    kind: Kind = "text"
    interval: bool = False

    @property
    def keys(self) -> list[str]:
        return [self.key, f"{self.key}_low", f"{self.key}_high"] if self.interval else [self.key]


@dataclass(frozen=True)
class Cell:
    """The text of a cell, its interval ("" for none), and the key that it is sorted by (None where missing)."""

    text: str
    interval: str
    order: str | float | None
    kind: Kind

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """Rows under a title; `note` explains the numbers. Its frame has columns that are not shown: `arm`, and `same`,
    whether the arm has the same results as the baseline.
    """

    name: str
    title: str
    note: str
    fields: Sequence[Field]
    frame: pd.DataFrame

    def rows(self) -> Iterator[tuple[str | None, list[Cell]]]:
        """The id of the arm that the row is about, if any, and the cells."""
        for values in self.frame.itertuples(index=False, name=None):
            row = dict(zip(self.frame.columns, values, strict=True))
            yield row["arm"], [_cell(row, field) for field in self.fields]

    def markdown(self) -> str:
        lines = [
            " | ".join(field.label for field in self.fields),
            " | ".join("---" if field.kind in TEXTS else "---:" for field in self.fields),
            *(" | ".join(markdown(str(cell)) for cell in cells) for _, cells in self.rows()),
        ]
        return "".join(f"| {line} |\n" for line in lines)

    def latex(self) -> str:
        """A `table` environment; needs booktabs."""
        cells = pd.DataFrame(
            [[latex(str(cell)) for cell in cells] for _, cells in self.rows()],
            columns=pd.Index([latex(field.label) for field in self.fields]),
        )
        return cells.to_latex(
            index=False,
            column_format="".join(_LATEX.get(field.kind, "r") for field in self.fields),
            caption=f"{latex(self.title)}. {latex(self.note)}",
            label=f"tab:{self.name}",
        )

    def csv(self) -> str:
        return frame_csv(self.frame[[key for field in self.fields for key in field.keys]])


def table(
    name: str, title: str, note: str, fields: list[Field], rows: Iterable[tuple[Arm | None, dict[str, Any]]]
) -> Table:
    """A table of rows, given as the arm that each is about and key → cell; a key that a row lacks is missing."""
    columns = ["arm", "same", *dict.fromkeys(["label", *(key for field in fields for key in field.keys)])]
    records = [{"label": arm.label, **row, "arm": arm.id} if arm else {**row, "arm": None} for arm, row in rows]
    return Table(name, title, note, fields, pd.DataFrame(records, columns=columns, dtype=object))


def frame_csv(frame: pd.DataFrame) -> str:
    """CSV with a header row. A missing value is an empty cell; numbers have at most 6 decimals."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(frame.columns)
    columns = [_csv_column(frame.iloc[:, position]) for position in range(frame.shape[1])]
    rows = pa.BufferOutputStream()
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
    pyarrow.csv.write_csv(pa.table(columns, names=list(map(str, range(len(columns))))), rows, options)
    return header.getvalue() + rows.getvalue().to_pybytes().decode()


def _csv_column(values: pd.Series) -> pa.Array:
    if values.dtype == object:
        values = values.convert_dtypes()
    if is_float_dtype(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        small = np.abs(numbers) < 2**53 / 1e6  # larger ones have fewer decimals anyway, and do not round exactly
        return pa.array(np.where(small, np.round(np.where(small, numbers, 0), 6), numbers) + 0.0, from_pandas=True)
    if is_string_dtype(values):
        codes, texts = pd.factorize(values)  # escapes each text once
        return pa.array([csv_cell(text) for text in texts], pa.string()).take(pa.array(codes, mask=codes < 0))
    return pa.array(values, from_pandas=True)


def _cell(row: dict[str, Any], field: Field) -> Cell:
    value = row[field.key]
    if field.kind == "points" and row.get("same") is True:
        return Cell("same", "", 0.0, field.kind)
    if _missing(value):
        return Cell(MISSING, "", None, field.kind)
    interval = ""
    if field.interval and not _missing(row[f"{field.key}_low"]):
        interval = f"[{', '.join(_number(row[key], field.kind) for key in field.keys[1:])}]"
    if field.kind in TEXTS:
        return Cell(str(value), interval, str(value), field.kind)
    return Cell(_number(value, field.kind), interval, float(value), field.kind)


def _number(value: float, kind: Kind) -> str:
    if kind == "decimal":
        text = f"{value:.3g}"
    elif kind == "number" or (kind == "tokens" and value >= 100):
        text = f"{value:.0f}"
    else:
        text = f"{value:+.1f}" if kind == "points" else f"{value:.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
