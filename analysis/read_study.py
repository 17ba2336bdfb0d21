"""Reads an exported study (`analysis.study`) as the records that it was made from.

It may come from elsewhere: anything that `analysis.study` would not write raises a `RecordError` that names the file,
the column and what is wrong.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.arm_details import ArmDetails
from analysis.columns import Column
from analysis.config_diff import applied
from analysis.evaluation import AVERAGE, SCORES, grades
from analysis.load import Records
from analysis.rollouts import parse_rollouts
from analysis.study_schema import AVERAGED, CONFIGS, EVALUATION, TABLES
from opd.config.flat import flat, nested
from opd.config.identity import as_today, config_hash
from opd.printable import printable
from opd.records.files import RecordError, read_bytes, read_json
from opd.records.run_dir import State

MOST_ROWS, MOST_BYTES = 10**8, 2**33  # of one table, unpacked
LONGEST = 400  # characters of a text that is shown; `analysis.load` keeps no longer ones
_NOT_SHOWN = {("scores.parquet", "problem"), ("rollouts.parquet", "record")}
_INTEGERS = 2**53
_NEAR = 1e-5  # rounding of a share in 32 bits


def read_study(folder: Path) -> Records:
    """Reads the exports; raises `RecordError`."""
    try:
        return _study(folder)
    except RecordError as error:
        raise RecordError(str(error).removeprefix(f"{folder}/")) from error


def _study(folder: Path) -> Records:
    tables = {name: _read(folder / f"{name}.parquet", TABLES[name]) for name in TABLES}
    runs = tables["runs"]
    details = _details(folder, runs, tables["rollouts"])
    _check_runs(runs, details)
    for name in ("training", "scores", "evaluations", "answers"):
        _require(tables[name]["run"].isin(runs["run"]), name, "run", "is not a run of runs.parquet")
    _require_unique(tables["training"], "training", ["run", "step"])
    scores = _scores(tables["scores"], tables["evaluations"])
    _check_counted(runs, scores)
    damage = tables["excluded"][tables["excluded"]["damage"]].drop(columns="damage")
    return Records(
        runs=runs.astype({"error": "str"}),
        training=tables["training"],
        scores=scores,
        answers=tables["answers"],
        excluded=tables["excluded"].drop(columns="damage"),
        details=details,
        damage=list(damage.itertuples(index=False, name=None)),
        averaged=AVERAGED,
    )


# ---- a table


def _read(file: Path, columns: tuple[Column, ...]) -> pd.DataFrame:
    """Its columns, each of its type."""
    content = read_bytes(file)
    try:
        parquet = pq.ParquetFile(io.BytesIO(content))
        size = sum(parquet.metadata.row_group(at).total_byte_size for at in range(parquet.num_row_groups))
        if parquet.metadata.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise RecordError(f"{file.name}: is too large for the records of a study")
        there = parquet.schema_arrow.names
        for column in columns:
            if there.count(column.name) > 1 or not (column.optional or column.name in there):
                raise RecordError(f"{file.name}: has no column {column.name}, or several")
        present = [column for column in columns if column.name in there]
        texts = [column.name for column in present if column.type is str]
        table = pq.ParquetFile(io.BytesIO(content), read_dictionary=texts).read([column.name for column in present])
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = printable(str(error), limit=120)
        raise RecordError(f"{file.name}: is not a readable Parquet file ({reason})") from error
    return pd.DataFrame(
        {column.name: _values(table[column.name], column) if column.name in there else np.nan for column in columns}
    )


_IS_TYPE: dict[type, Callable[[pa.DataType], bool]] = {
    str: lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    int: pa.types.is_integer,
    float: pa.types.is_floating,
    bool: pa.types.is_boolean,
}


def _values(values: pa.ChunkedArray, column: Column) -> np.ndarray:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    where, table = f"{column.source}: column {column.name}", column.source.removesuffix(".parquet")
    if not _IS_TYPE[column.type](kind) and not (column.optional and pa.types.is_null(kind)):
        raise RecordError(f"{where} is of type {kind}, not {column.type.__name__}")
    if values.null_count and not column.optional:
        raise RecordError(f"{where} has no value in {values.null_count} rows")
    if column.type is str:
        return _texts(values, where, shown=(column.source, column.name) not in _NOT_SHOWN)
    array = values.to_numpy().astype(column.type)
    if column.type is int:
        _require(np.abs(array.astype(float)) < _INTEGERS, table, column.name, "is beyond 2^53")
    if column.type is float:
        wrong = np.isinf(array) if column.optional else ~np.isfinite(array)
        _require(~wrong, table, column.name, "is not a finite number")
    return array


def _texts(values: pa.ChunkedArray, where: str, *, shown: bool) -> np.ndarray:
    """Each text once in memory, however often it occurs."""
    if pa.types.is_null(values.type):
        return np.full(len(values), None, dtype=object)
    encoded = values.combine_chunks()
    encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    for text in texts if shown else ():
        if text != printable(text, limit=LONGEST):
            raise RecordError(f"{where} has {printable(repr(text), limit=40)}, which is not plain text")
    return np.array([*texts, None], dtype=object)[encoded.indices.fill_null(len(texts)).to_numpy()]


# ---- consistency of the tables


def _require(right: Any, table: str, column: str, wrong: str) -> None:
    """Raises `RecordError` with the first row that is not right."""
    rows = np.flatnonzero(~np.asarray(right, dtype=bool))
    if len(rows):
        raise RecordError(f"{table}.parquet: column {column}, row {rows[0]}: {wrong}")


def _require_unique(frame: pd.DataFrame, table: str, keys: list[str]) -> None:
    _require(~frame.duplicated(keys), table, ", ".join(keys), "is a duplicate")
    if "step" in frame:
        _require(frame["step"] >= 0, table, "step", "is less than 0")


def _check_runs(runs: pd.DataFrame, details: Mapping[str, ArmDetails]) -> None:
    _require_unique(runs, "runs", ["run"])
    _require_unique(runs, "runs", ["arm", "seed"])
    _require(runs["state"].isin(get_args(State)), "runs", "state", f"is none of {', '.join(get_args(State))}")
    _require(runs["num_steps"] >= 0, "runs", "num_steps", "is less than 0")
    _require(runs["arm"].isin(list(details)), "runs", "arm", f"has no config in {CONFIGS}")
    names = [arm.rpartition("-")[0] for arm in runs["arm"]]
    _require(runs["name"] == names, "runs", "name", "is not the name of its arm")


def _check_counted(runs: pd.DataFrame, scores: pd.DataFrame) -> None:
    last = runs["run"].map(scores.groupby("run")["step"].max()).fillna(-1)
    complete = (runs["state"] == "finished") & (last >= runs["num_steps"]) & runs["last_known"]
    _require(~runs["counted"] | complete, "runs", "counted", "is true of a run whose last step was not evaluated")
    _require(~(runs["last_known"] | runs["max_known"]) | (last >= 0), "runs", "last_known", "is true without a score")


def _scores(scores: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """`Records.scores`; of `AVERAGED` each problem has the mean of its evaluation."""
    _require_unique(scores, "scores", [*EVALUATION, "problem"])
    _require_unique(evaluations, "evaluations", EVALUATION)
    _require(scores["benchmark"] != AVERAGE, "scores", "benchmark", f"is {AVERAGE}, not the name of a benchmark")
    _require(scores["k"] >= 1, "scores", "k", "is less than 1")
    right = np.rint(scores["mean"] * scores["k"])
    fits = (np.abs(right / scores["k"] - scores["mean"]) < _NEAR) & (right >= 0) & (right <= scores["k"])
    _require(fits, "scores", "mean", "is not a share of k answers")
    _require(scores["maj"].isin([0.0, 1.0]), "scores", "maj", "is neither 0 nor 1")
    _require(evaluations["truncated"].between(0, 1), "evaluations", "truncated", "is not between 0 and 1")
    _require(evaluations["length"] >= 0, "evaluations", "length", "is less than 0")
    by_evaluation = pd.MultiIndex.from_frame(evaluations[EVALUATION])
    at = by_evaluation.get_indexer(pd.MultiIndex.from_frame(scores[EVALUATION]))
    _require(at >= 0, "scores", "run, step, benchmark", "has no row in evaluations.parquet")
    graded = grades(right, scores["k"].to_numpy())
    averaged = [evaluations[name].to_numpy()[at] for name in AVERAGED]
    values = dict(zip(SCORES, (*graded, scores["maj"].to_numpy(), *averaged), strict=True))
    return scores[[*EVALUATION, "problem", "k"]].assign(**values)


# ---- arms


def _details(folder: Path, runs: pd.DataFrame, rollouts: pd.DataFrame) -> dict[str, ArmDetails]:
    """Arm → its details, in the order of the runs."""
    _require_unique(rollouts, "rollouts", ["arm"])
    arms = _arms(folder)
    _require(rollouts["arm"].isin(list(arms)), "rollouts", "arm", f"has no config in {CONFIGS}")
    recorded = {}
    for arm, step, record in rollouts[["arm", "step", "record"]].itertuples(index=False, name=None):
        where = f"rollouts.parquet: column record, arm {arm}"
        try:
            content = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where}: is not JSON") from error
        recorded[arm] = parse_rollouts(content, step, where)
    return {arm: ArmDetails(*arms[arm], recorded.get(arm)) for arm in dict.fromkeys(runs["arm"]) if arm in arms}


def _arms(folder: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """Arm → its config by dotted key, which has its hash, and its ranks."""
    content, arms = read_json(folder / CONFIGS), {}
    try:
        for arm, own in content["arms"].items():
            name = printable(str(arm), limit=80)
            change = {key: value for key, value in own.items() if key != "ranks"}
            config = as_today(nested(applied(content["shared"], change)))
            if (digest := config_hash(config)[:8]) != str(arm).rpartition("-")[2]:
                raise RecordError(f"{CONFIGS}: the config of {name} has the hash {digest}")
            if type(own["ranks"]) is not int or own["ranks"] < 1:
                raise RecordError(f"{CONFIGS}: ranks of {name} is not a number of processes")
            arms[arm] = (flat(config), own["ranks"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        reason = printable(str(error), limit=80)
        raise RecordError(f"{CONFIGS}: is not what analysis.study writes ({reason})") from error
    return arms
