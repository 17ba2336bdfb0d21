"""python -m analysis.study runs=DIR out=DIR

Exports the records of a study, from which `analysis.report` makes the report that it makes of the run directories:

  runs.parquet         a row a run: name, seed, state, what of it counts
  training.parquet     a row a step: what was recorded, in 32 bits
  scores.parquet       a row a problem of an evaluation: k, the share of its answers that is right, and whether most are
  evaluations.parquet  a row a benchmark of an evaluation: the share of answers cut off, their mean length in tokens
  answers.parquet      a few answers of each run's last evaluation
  rollouts.parquet     a row an arm: a few responses and the log-ratios of its last recorded step
  excluded.parquet     what was left out, and why
  configs.json         what the arms' configs share, and what each sets and unsets of it

An arm is the runs that differ in nothing but their seed. Of the lengths of answers, whose intervals stand in no table
but scores_long.csv and differences_long.csv, only means are kept; all else that a report shows is kept whole. Of a
config everything is kept but where things are: `paths`, `tracker` and `teacher.server`.

  runs=DIR  the folder of run directories, as outputs/main
  out=DIR   the folder to write to, made if it is not there
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.study_tables import CONFIGS, EVALUATION, TABLES, WHOLE
from opd.errors import UserError
from opd.records.run_dir import find_runs

if TYPE_CHECKING:
    import pandas as pd

    from analysis.load import Records

PRIVATE = ("paths.", "tracker.", "teacher.server.")  # of a config; no part of its hash, and in no report
HALVED = ("training", "scores")  # the big ones: 32 bits are enough for their numbers
LARGEST = 3e38  # that 32 bits hold


def exported(records: "Records") -> dict[str, bytes]:
    """File name → content. Order and number of a table's rows are those of the records."""
    import pandas as pd

    from analysis.differences import difference, shared
    from analysis.rollouts import as_record

    damage = {tuple(row) for row in records.damage}
    recorded = [(arm, own.rollouts) for arm, own in records.details.items() if own.rollouts]
    frames = {
        "runs": records.runs,
        "training": records.training,
        "scores": records.scores,
        "evaluations": records.scores.groupby(EVALUATION, sort=False)[list(WHOLE)].mean().reset_index(),
        "answers": records.answers,
        "rollouts": pd.DataFrame(
            [(arm, own.step, json.dumps(as_record(own))) for arm, own in recorded], columns=["arm", "step", "record"]
        ),
        "excluded": records.excluded.assign(
            damage=[row in damage for row in records.excluded.itertuples(index=False, name=None)]
        ),
    }
    configs = {arm: published(own.config) for arm, own in records.details.items()}
    base = shared(list(configs.values()))
    arms = {arm: {"ranks": records.details[arm].ranks, **difference(base, own)} for arm, own in configs.items()}
    made = {f"{name}.parquet": _parquet(frames[name], name) for name in TABLES}
    return made | {CONFIGS: (json.dumps({"shared": base, "arms": arms}, indent=1, sort_keys=True) + "\n").encode()}


def published(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config by dotted key what does not say where the study's machines keep and reach things."""
    return {key: value for key, value in config.items() if not f"{key}.".startswith(PRIVATE)}


def _parquet(frame: "pd.DataFrame", name: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    halved = name in HALVED and not (frame.select_dtypes("float").abs() > LARGEST).any(axis=None)
    number = pa.float32() if halved else pa.float64()
    kinds = {str: pa.string(), int: pa.int64(), float: number, bool: pa.bool_()}
    schema = pa.schema([(column.name, kinds[column.type]) for column in TABLES[name]])
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False, safe=False)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), out, compression="zstd", compression_level=19)
    return out.getvalue()


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend, said in one sentence."""
    if {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return 0
    try:
        print(write_study(*parse(argv)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> tuple[Path, Path]:
    """The folders to read and to write; raises `UserError`."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or given.keys() != {"runs", "out"} or not all(given.values()):
        raise UserError("give two folders, as runs=outputs/main out=exports/main")
    return Path(given["runs"]), Path(given["out"])


def write_study(runs: Path, out: Path) -> str:
    """Exports the runs under `runs` to `out`; returns one sentence on what was written. Raises `UserError`."""
    from analysis.load import load
    from analysis.report import write

    if not find_runs(runs):
        raise UserError(f"runs={runs} holds no run directory (one with a config.yaml or status.json)")
    records = load(runs)
    made = exported(records)
    write(out, made)
    size = sum(map(len, made.values())) / 1e6
    return f"{out}: {len(records.runs)} runs in {size:.1f} MB, {len(records.excluded)} things left out"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
