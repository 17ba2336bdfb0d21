"""How a table becomes cells, Markdown and CSV."""

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
from pandas.api.types import infer_dtype, is_bool_dtype, is_float_dtype, is_integer_dtype

from analysis.arms import Arm
from analysis.text import csv_cell, latex, markdown

MISSING = "–"
Kind = Literal["text", "number", "percent", "points", "tokens", "decimal"]


@dataclass(frozen=True)
class Field:
    """One column of a table. With `interval`, the frame also has `<key>_low` and `<key>_high`."""

    key: str
    label: str
    kind: Kind = "text"
    interval: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell as it is read, its interval ("" without one), and what it is sorted by (None where missing)."""

    text: str
    interval: str
    order: str | float | None
    kind: Kind


@dataclass(frozen=True)
class Table:
    """Rows to show under a title; `note` says what the numbers are. The frame's column `arm` is not shown."""

    name: str
    title: str
    note: str
    fields: Sequence[Field]
    frame: pd.DataFrame

    def rows(self) -> Iterator[tuple[str | None, list[Cell]]]:
        """The arm's id, where a row is about one, and the cells."""
        for values in self.frame.itertuples(index=False, name=None):
            row = dict(zip(self.frame.columns, values, strict=True))
            yield row["arm"], [_cell(row, field) for field in self.fields]

    def markdown(self) -> str:
        lines = [
            "| " + " | ".join(field.label for field in self.fields) + " |",
            "|" + "|".join(" --- " if field.kind == "text" else " ---: " for field in self.fields) + "|",
        ]
        for _, row in self.rows():
            cells = [f"{markdown(cell.text)} {markdown(cell.interval)}".strip() for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A `table` environment; needs booktabs. Numbers are set as text, so that a minus and a dash stay apart."""
        columns = "".join("l" if field.kind == "text" else "r" for field in self.fields)
        lines = [" & ".join(latex(field.label) for field in self.fields) + r" \\", r"\midrule"]
        for _, row in self.rows():
            cells = [latex(f"{cell.text} {cell.interval}".strip()) for cell in row]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(self.title)}. {latex(self.note)}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
                r"\toprule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        keys = [
            key
            for field in self.fields
            for key in ([field.key, f"{field.key}_low", f"{field.key}_high"] if field.interval else [field.key])
        ]
        return frame_csv(self.frame[keys])


def table(
    name: str, title: str, note: str, fields: list[Field], rows: Iterable[dict[str, Any]], arms: Iterable[Arm | None]
) -> Table:
    """Rows as mappings of cells, and the arm that each is about; a key that a row lacks is a missing cell."""
    keys = [key for field in fields for key in (field.key, f"{field.key}_low", f"{field.key}_high")]
    columns = ["arm", *dict.fromkeys(["label", *keys])]
    whole = [
        {**row, "arm": arm.id, "label": arm.label} if arm else {**row, "arm": None}
        for row, arm in zip(rows, arms, strict=True)
    ]
    return Table(name, title, note, fields, pd.DataFrame(whole, columns=columns, dtype=object))


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
    values = values.infer_objects()
    if is_float_dtype(values):
        return pa.array(_six_decimals(values.to_numpy(dtype=float)), from_pandas=True)
    if is_integer_dtype(values) or is_bool_dtype(values):
        return pa.array(values)
    if infer_dtype(values) == "string":  # of a column of names each is looked at once
        codes, texts = pd.factorize(values)
        return pa.array([csv_cell(text) for text in texts], pa.string()).take(pa.array(codes, mask=codes < 0))
    return pa.array([_csv_text(value) for value in values], pa.string())


def _csv_text(value: Any) -> str | None:
    if _missing(value):
        return None
    if isinstance(value, float):
        return repr(float(_six_decimals(np.float64(value))))
    return csv_cell(value) if isinstance(value, str) else str(value)


def _six_decimals(values: np.ndarray | np.float64) -> np.ndarray:
    """Beyond 2⁵³ millionths a float has fewer decimals than six anyway, and rounding would not be exact."""
    small = np.abs(values) < 2**53 / 1e6
    return np.where(small, np.round(np.where(small, values, 0), 6), values) + 0.0


def _cell(row: dict[str, Any], field: Field) -> Cell:
    value = row[field.key]
    if _missing(value):
        return Cell(MISSING, "", None, field.kind)
    interval = ""
    if field.interval and not _missing(row[f"{field.key}_low"]):
        ends = (_number(row[f"{field.key}_{end}"], field.kind) for end in ("low", "high"))
        interval = f"[{', '.join(ends)}]"
    if field.kind == "text":
        return Cell(str(value), interval, str(value), field.kind)
    return Cell(_number(value, field.kind), interval, float(value), field.kind)


def _number(value: float, kind: Kind) -> str:
    if kind == "number":
        return f"{value:.0f}"
    if kind == "decimal":
        return f"{value:.3g}".replace("-", "−")
    if kind == "tokens":
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    text = f"{value:+.1f}" if kind == "points" else f"{value:.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
