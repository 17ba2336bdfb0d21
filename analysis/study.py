"""python -m analysis.study runs=DIR out=DIR

Exports the records of a study, from which `analysis.report` makes the same report as from the run directories:

  runs.parquet         one row a run: name, seed, state, what of it counts
  training.parquet     one row a step: what was recorded, in 32 bits
  scores.parquet       one row a problem of an evaluation: k, the share of right answers, and whether most are right
  evaluations.parquet  one row a benchmark of an evaluation: the share of answers cut off, their mean length in tokens
  answers.parquet      a few answers of each run's last evaluation
  rollouts.parquet     one row an arm: a few responses and the log-ratios of its last recorded step
  excluded.parquet     what was left out, and why
  configs.json         the keys that the arms' configs share, and those that each sets and unsets

An arm is the runs that differ only in their seed. Of the lengths of answers only means are exported, so that their
intervals, which only scores_long.csv and differences_long.csv show, are lost; the rest of a report is reproduced in
full. Of a config everything is exported except locations: `paths`, `tracker`, `hub` and `teacher.server`.

  runs=DIR  the folder of run directories, such as outputs/main
  out=DIR   the folder to write to, created if it does not exist
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import command
from analysis.study_schema import AVERAGED, CONFIGS, EVALUATION, TABLES
from opd.errors import UserError
from opd.records.run_dir import find_runs

if TYPE_CHECKING:
    import pandas as pd

    from analysis.load import Records

PRIVATE = ("paths.", "tracker.", "hub.", "teacher.server.")  # keys of a config; not hashed, and in no report
HALVED = ("training", "scores")  # the large tables, for which 32 bits are enough
LARGEST = 3e38  # in 32 bits


def exported(records: "Records") -> dict[str, bytes]:
    """File name → content. The rows of a table keep the order of the records."""
    import pandas as pd

    from analysis.config_diff import difference, shared
    from analysis.rollouts import as_record

    damage = {tuple(row) for row in records.damage}
    rollouts = [
        (arm, own.rollouts.step, json.dumps(as_record(own.rollouts)))
        for arm, own in records.details.items()
        if own.rollouts
    ]
    is_damage = [row in damage for row in records.excluded.itertuples(index=False, name=None)]
    frames = {
        "runs": records.runs,
        "training": records.training,
        "scores": records.scores,
        "evaluations": records.scores.groupby(EVALUATION, sort=False)[list(AVERAGED)].mean().reset_index(),
        "answers": records.answers,
        "rollouts": pd.DataFrame(rollouts, columns=["arm", "step", "record"]),
        "excluded": records.excluded.assign(damage=is_damage),
    }
    configs = {arm: public(own.config) for arm, own in records.details.items()}
    base = shared(list(configs.values()))
    arms = {arm: {"ranks": records.details[arm].ranks, **difference(base, own)} for arm, own in configs.items()}
    files = {f"{name}.parquet": _parquet(frames[name], name) for name in TABLES}
    return files | {CONFIGS: (json.dumps({"shared": base, "arms": arms}, indent=1, sort_keys=True) + "\n").encode()}


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config by dotted key, without the places where its machines keep and reach things."""
    return {key: value for key, value in config.items() if not f"{key}.".startswith(PRIVATE)}


def _parquet(frame: "pd.DataFrame", name: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    halved = name in HALVED and not (frame.select_dtypes("float").abs() > LARGEST).any(axis=None)
    types = {str: pa.string(), int: pa.int64(), float: pa.float32() if halved else pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(column.name, types[column.type]) for column in TABLES[name]])
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False, safe=False)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), out, compression="zstd", compression_level=19)
    return out.getvalue()


@dataclass(frozen=True)
class Arguments:
    """The command's arguments; the module's docstring describes each."""

    runs: Path
    out: Path


def write_study(runs: Path, out: Path) -> str:
    """Exports the runs under `runs` to `out`; returns a sentence on what was written. Raises `UserError`."""
    from analysis.load import load

    if not find_runs(runs):
        raise UserError(f"runs={runs} holds no run directory (one with a config.yaml or status.json)")
    records = load(runs)
    files = exported(records)
    command.write(out, files)
    size = sum(map(len, files.values())) / 1e6
    return f"{out}: {len(records.runs)} runs in {size:.1f} MB; {len(records.excluded)} records left out"


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return command.run(argv, __doc__, Arguments, lambda given: write_study(given.runs, given.out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
