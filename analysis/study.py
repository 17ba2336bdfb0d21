"""python -m analysis.study runs=DIR out=DIR|FILE.zip

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
full. Of a config everything is exported except locations: `paths`, `tracker`, `teacher.server`, and what
`hub.push` names.

  runs=DIR          the folder of run directories, such as outputs/main, or of such exports
  out=DIR           the folder to write to, created if it does not exist
  out=FILE.zip      or an archive of the exports with their page, report.html, for another machine, where
                    `analysis.report runs=FILE.zip` reads it
  baseline=default  the run that the others are compared with on that page
"""

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import command, pack
from analysis.study_schema import AVERAGED, CONFIGS, EVALUATION, TABLES, studies
from opd.errors import UserError
from opd.printable import warn
from opd.records.run_dir import find_runs

if TYPE_CHECKING:
    import pandas as pd

    from analysis.load import Records

PRIVATE = ("paths.", "tracker.", "teacher.server.")  # keys of a config; not hashed, and in no report
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
    by_evaluation = records.scores.groupby(EVALUATION, sort=False)[list(AVERAGED)]
    frames = {
        "runs": records.runs,
        "training": records.training,
        "scores": records.scores,
        "evaluations": by_evaluation.agg("first" if records.averaged else "mean").reset_index(),
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
    kept = {key: value for key, value in config.items() if not f"{key}.".startswith(PRIVATE)}
    return kept | dict.fromkeys(kept.keys() & {"hub.push"})


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
    baseline: str = "default"


def write_study(runs: Path, out: Path, *, baseline: str = "default") -> str:
    """Exports the runs under `runs` to `out`; returns a sentence on what was written. Raises `UserError`."""
    from analysis.report import read_records

    if not studies(runs) and not find_runs(runs):
        raise UserError(f"runs={runs} holds no run directory (one with a config.yaml or status.json)")
    records = read_records(runs, cache=False)
    if out.suffix == pack.SUFFIX:
        files = _with_page(exported(pack.without_places(records)), baseline)
        for key, value in pack.places(public(own.config) for own in records.details.values()).items():
            warn(f"{key}={value}: names a place on this machine; it is part of its runs' hashes, so {out} has it too")
        command.write(out.parent, {out.name: pack.packed(files)})
    else:
        files = exported(records)
        command.write(out, files)
    size = sum(map(len, files.values())) / 1e6
    return f"{out}: {len(records.runs)} runs in {size:.1f} MB; {len(records.excluded)} records left out"


def _with_page(files: Mapping[str, bytes], baseline: str) -> dict[str, bytes]:
    """The exports and the page that they give."""
    from analysis import report

    with tempfile.TemporaryDirectory() as folder:
        command.write(Path(folder), files)
        pages, _ = report.build(report.Arguments(Path(folder), Path(), baseline=baseline, figures=False))
    page = pages[pack.PAGE]
    return {**files, pack.PAGE: page.encode() if isinstance(page, str) else page}


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return command.run(
        argv, __doc__, Arguments, lambda given: write_study(given.runs, given.out, baseline=given.baseline)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
