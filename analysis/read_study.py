"""A folder of exports (`analysis.study`) → the records that it was made of.

It may be foreign: what is not as `analysis.study` writes it ends in a `RecordError` that names the file, the column and
what is wrong.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.columns import Column
from analysis.details import Details
from analysis.differences import applied, flat, nested
from analysis.evaluation import AVERAGE, SCORES
from analysis.load import Records
from analysis.rollouts import parse_rollouts
from analysis.study_tables import CONFIGS, EVALUATION, TABLES, WHOLE
from analysis.text import printable
from opd.config.identity import as_today, config_hash
from opd.records.run_dir import RecordError, State, read_bytes, read_json

MOST_ROWS, MOST_BYTES = 10**8, 2**33  # of one table, unpacked
LONGEST = 400  # of a text that is shown, in letters; `analysis.load` keeps none that is longer
NOT_SHOWN = {("scores", "problem"), ("rollouts", "record")}
_INTEGERS = 2**53
_NEAR = 1e-5  # what 32 bits leave of a share


def read_study(folder: Path) -> Records:
    """Reads the exports; raises `RecordError`."""
    try:
        return _study(folder)
    except RecordError as error:
        raise RecordError(str(error).removeprefix(f"{folder}/")) from error


def _study(folder: Path) -> Records:
    tables = {name: _read(folder, name) for name in TABLES}
    runs = tables["runs"]
    details = _details(folder, runs, tables["rollouts"])
    _check_runs(runs, details)
    for name in ("training", "scores", "evaluations", "answers"):
        _require(tables[name]["run"].isin(runs["run"]), name, "run", "is no run of runs.parquet")
    _require_once(tables["training"], "training", ["run", "step"])
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
        whole=WHOLE,
    )


# ---- a table


def _read(folder: Path, name: str) -> pd.DataFrame:
    """Its columns, each of its type."""
    file, columns = folder / f"{name}.parquet", TABLES[name]
    content = read_bytes(file)
    try:
        whole = pq.ParquetFile(io.BytesIO(content))
        size = sum(whole.metadata.row_group(at).total_byte_size for at in range(whole.num_row_groups))
        if whole.metadata.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise RecordError(f"{file.name}: is too large to be the records of a study")
        for column in columns:
            _check_kind(whole.schema_arrow, column)
        texts = [column.name for column in columns if column.type is str]
        table = pq.ParquetFile(io.BytesIO(content), read_dictionary=texts).read([column.name for column in columns])
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = printable(str(error), limit=120)
        raise RecordError(f"{file.name}: is no Parquet file that can be read ({reason})") from error
    return pd.DataFrame({column.name: _values(table[column.name], column, name) for column in columns})


def _check_kind(schema: pa.Schema, column: Column) -> None:
    if len(schema.get_all_field_indices(column.name)) != 1:
        raise RecordError(f"{column.source}: has no column {column.name}, or several")
    kind = _kind(schema, column)
    fits = {
        str: pa.types.is_string(kind) or pa.types.is_large_string(kind),
        int: pa.types.is_integer(kind),
        float: pa.types.is_floating(kind),
        bool: pa.types.is_boolean(kind),
    }[column.type]
    if not fits and not (column.optional and pa.types.is_null(kind)):
        raise RecordError(f"{column.source}: column {column.name} is of type {kind}, not {column.type.__name__}")


def _kind(schema: pa.Schema, column: Column) -> pa.DataType:
    kind = schema.field(column.name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _values(values: pa.ChunkedArray, column: Column, table: str) -> Any:
    if values.null_count and not column.optional:
        raise RecordError(f"{column.source}: column {column.name} has no value in {values.null_count} rows")
    if column.type is str:
        return _texts(values, column, shown=(table, column.name) not in NOT_SHOWN)
    array = values.to_numpy()
    if column.type is int:
        _require(np.abs(array.astype(float)) < _INTEGERS, table, column.name, "is beyond 2^53")
        return array.astype(np.int64)
    if column.type is float:
        array = array.astype(float)
        wrong = np.isinf(array) if column.optional else ~np.isfinite(array)
        _require(~wrong, table, column.name, "is no finite number")
        return array
    return array.astype(bool)


def _texts(values: pa.ChunkedArray, column: Column, *, shown: bool) -> np.ndarray:
    """Each text once in memory, however often it is there."""
    if pa.types.is_null(values.type):
        return np.full(len(values), None, dtype=object)
    encoded = values.combine_chunks()
    encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    for text in texts if shown else ():
        if text != printable(text, limit=LONGEST):
            told = printable(repr(text), limit=40)
            raise RecordError(f"{column.source}: column {column.name} has {told}, which is no plain text")
    found = np.array([*texts, None], dtype=object)
    return found[encoded.indices.fill_null(len(texts)).to_numpy()]


# ---- what the tables must say


def _require(right: Any, table: str, column: str, wrong: str) -> None:
    """Raises `RecordError` with the first row that is not right."""
    rows = np.flatnonzero(~np.asarray(right, dtype=bool))
    if len(rows):
        raise RecordError(f"{table}.parquet: column {column}, row {rows[0]}: {wrong}")


def _require_once(frame: pd.DataFrame, table: str, keys: list[str]) -> None:
    _require(~frame.duplicated(keys), table, ", ".join(keys), "is there twice")
    _require(frame["step"] >= 0, table, "step", "is less than 0")


def _check_runs(runs: pd.DataFrame, details: Mapping[str, Details]) -> None:
    _require(~runs.duplicated("run"), "runs", "run", "is there twice")
    _require(~runs.duplicated(["arm", "seed"]), "runs", "arm, seed", "is there twice")
    _require(runs["state"].isin(get_args(State)), "runs", "state", f"is none of {', '.join(get_args(State))}")
    _require((runs["step"] >= 0) & (runs["num_steps"] >= 0), "runs", "step, num_steps", "is less than 0")
    _require(runs["arm"].isin(list(details)), "runs", "arm", f"has no config in {CONFIGS}")
    named = [arm.rpartition("-")[0] for arm in runs["arm"]]
    _require(runs["name"] == named, "runs", "name", "is not the name that its arm has")


def _check_counted(runs: pd.DataFrame, scores: pd.DataFrame) -> None:
    last = runs["run"].map(scores.groupby("run")["step"].max()).fillna(-1)
    whole = (runs["state"] == "finished") & (last >= runs["num_steps"]) & runs["last_known"]
    _require(~runs["counted"] | whole, "runs", "counted", "is true of a run whose last step was not evaluated")
    _require(~(runs["last_known"] | runs["max_known"]) | (last >= 0), "runs", "last_known", "is true without a score")


def _scores(scores: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """`Records.scores`; of `WHOLE` each problem has the mean of its evaluation."""
    _require_once(scores, "scores", [*EVALUATION, "problem"])
    _require_once(evaluations, "evaluations", EVALUATION)
    _require(scores["benchmark"] != AVERAGE, "scores", "benchmark", f"is {AVERAGE}, which no benchmark is called")
    _require(scores["k"] >= 1, "scores", "k", "is less than 1")
    right = np.rint(scores["mean"] * scores["k"])
    fits = (np.abs(right / scores["k"] - scores["mean"]) < _NEAR) & (right >= 0) & (right <= scores["k"])
    _require(fits, "scores", "mean", "is no share of k answers")
    _require(scores["maj"].isin([0.0, 1.0]), "scores", "maj", "is neither 0 nor 1")
    _require(evaluations["truncated"].between(0, 1), "evaluations", "truncated", "is no share")
    _require(evaluations["length"] >= 0, "evaluations", "length", "is less than 0")
    by_run = pd.MultiIndex.from_frame(evaluations[EVALUATION])
    at = by_run.get_indexer(pd.MultiIndex.from_frame(scores[EVALUATION]))
    _require(at >= 0, "scores", "run, step, benchmark", "has no row in evaluations.parquet")
    counts = pd.DataFrame({"right": right.astype(np.int64), "k": scores["k"]})
    pairs, of = np.unique(counts.to_numpy(), axis=0, return_inverse=True)
    graded = np.array([grades(int(one), int(k)) for one, k in pairs]).reshape(-1, 3)[of.ravel()]
    whole = {name: evaluations[name].to_numpy()[at] for name in WHOLE}
    made = dict(zip(SCORES, (*graded.T, scores["maj"].to_numpy(), *whole.values()), strict=True))
    return scores[[*EVALUATION, "problem", "k"]].assign(**made)


def grades(right: int, k: int) -> tuple[float, float, float]:
    """`opd.grading.scores` of k answers of which so many are right: mean@k, best@k and best@k resampled."""
    return right / k, float(right > 0), 1 - (1 - right / k) ** k


# ---- arms


def _details(folder: Path, runs: pd.DataFrame, rollouts: pd.DataFrame) -> dict[str, Details]:
    """Arm → its details, in the order of the runs."""
    _require_once(rollouts, "rollouts", ["arm"])
    arms = _arms(folder)
    _require(rollouts["arm"].isin(list(arms)), "rollouts", "arm", f"has no config in {CONFIGS}")
    recorded = {}
    for arm, step, record in rollouts[["arm", "step", "record"]].itertuples(index=False, name=None):
        where = f"rollouts.parquet: column record, arm {arm}"
        try:
            content = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where}: is no JSON") from error
        recorded[arm] = parse_rollouts(content, step, where)
    return {
        arm: Details(config, ranks, recorded.get(arm))
        for arm in dict.fromkeys(runs["arm"])
        if arm in arms
        for config, ranks in [arms[arm]]
    }


def _arms(folder: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """Arm → its config by dotted key, which is that of its hash, and its ranks."""
    content, found = read_json(folder / CONFIGS), {}
    try:
        for arm, own in content["arms"].items():
            change = {key: value for key, value in own.items() if key != "ranks"}
            config = as_today(nested(applied(content["shared"], change)))
            if (digest := config_hash(config)[:8]) != str(arm).rpartition("-")[2]:
                raise RecordError(f"{CONFIGS}: the config of {printable(str(arm), limit=80)} has the hash {digest}")
            if type(own["ranks"]) is not int or own["ranks"] < 1:
                raise RecordError(f"{CONFIGS}: ranks of {printable(str(arm), limit=80)} are no number of processes")
            found[arm] = (flat(config), own["ranks"])
    except RecordError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(
            f"{CONFIGS}: is not as analysis.study writes it ({printable(str(error), limit=80)})"
        ) from error
    return found
