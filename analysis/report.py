"""python -m analysis.report runs=DIR out=DIR

Reads every run directory under `runs` and writes report.html (one page that opens from disk without a network),
report.md, tables/*.csv and *.tex (LaTeX, with booktabs) and figures/*.svg and *.png to `out`. Damaged, unfinished and
foreign runs are listed with the reason.

  runs=DIR          the folder to read, such as outputs or outputs/demo; or an exported study, such as
                    docs/results/tiny (see `python -m analysis.study`), or a folder of such, as docs/results/small,
                    or one in an archive, as main.zip
  out=DIR           the folder to write to, created if it does not exist
  baseline=default  the run that the others are compared with: its name, or where several share it the whole of what
                    the report calls it, as baseline="default gamma=0.5", or name-confighash
  ema=0.15          weight of the newest value in the moving averages of the curves: above 0, at most 1
  bootstrap=5000    number of resamples for the interval of each rank: 100 to 100000
  seed=0            seed of the resamples: 0 or more; the same records and arguments give the same bytes
  wandb=SOURCE      adds training curves from Weights & Biases: FILE.csv, an export of a panel or of a history (several
                    with commas between), or ENTITY/PROJECT, read over the network. A run with the name of one in runs=
                    is that run, whose own records take precedence
  strict=false      true: no report where any record is damaged, missing, foreign or a duplicate; unfinished runs are
                    allowed
  figures=true      false: no figures/, which take a while; the page has its figures all the same
  cache=true        caches what it reads in DIR/.analysis, so that the next report of a large folder takes seconds; safe
                    to delete, used only for records that have not changed; the report is the same without it
"""

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from analysis import command
from analysis.pack import opened
from analysis.study_schema import studies
from opd.errors import UserError
from opd.records.files import RecordError
from opd.records.run_dir import find_runs

if TYPE_CHECKING:
    from analysis.load import Records
    from analysis.results import Results


BASELINE = "default"


@dataclass(frozen=True)
class Arguments:
    """The command's arguments; the module's docstring describes each."""

    runs: Path
    out: Path
    baseline: str = BASELINE
    ema: Annotated[float, Gt(0), Le(1)] = 0.15
    bootstrap: Annotated[int, Ge(100), Le(100_000)] = 5000
    seed: Annotated[int, Ge(0)] = 0
    wandb: str = ""
    strict: bool = False
    figures: bool = True
    cache: bool = True


LISTED = 3  # of damaged records, or of names, in a message


def write_report(arguments: Arguments) -> str:
    """Reads, analyses and writes; returns a sentence on what was written. Raises `UserError`."""
    with opened(arguments.runs) as runs:
        return _write_report(replace(arguments, runs=runs))


def _write_report(arguments: Arguments) -> str:
    if not arguments.runs.is_dir():
        raise UserError(f"runs={arguments.runs} is not a folder; give one that holds run directories, as runs=outputs")
    if not arguments.wandb and not studies(arguments.runs) and not find_runs(arguments.runs):
        raise UserError(
            f"runs={arguments.runs} holds no run directory (one with a config.yaml or status.json) and no runs.parquet"
        )
    files, summary = build(arguments)
    command.write(arguments.out, files)
    return f"{arguments.out / 'report.html'}: {summary}"


def build(arguments: Arguments) -> tuple[dict[str, str | bytes], str]:
    """File name → content, and a summary of what was read. A pure function of the records and the arguments."""
    from analysis.contrasts import Bootstrap
    from analysis.results import analyse
    from analysis.wandb_import import read_wandb, with_imported

    records = read_records(arguments.runs, cache=arguments.cache)
    if arguments.strict and records.damage:
        raise UserError(_refusal(arguments.runs, records.damage))
    if arguments.wandb:
        records = with_imported(records, read_wandb(arguments.wandb))
    bootstrap = Bootstrap(count=arguments.bootstrap, seed=arguments.seed)
    results = analyse(records, baseline=arguments.baseline, bootstrap=bootstrap)
    if arguments.baseline != BASELINE:
        _refuse_unknown(arguments.baseline, results)
    return contents(results, arguments)


def _refuse_unknown(baseline: str, results: "Results") -> None:
    """Raises `UserError` for a baseline that no run is, finished or not, or that several configs are."""
    if results.baseline:
        return
    named = [arm for arm in results.arms if baseline in (arm.id, arm.label, arm.name)]
    counted = [f"baseline={shlex.quote(arm.label)}" for arm in named if arm.counted]
    if len(counted) > 1:
        raise UserError(f"baseline={baseline}: several configs have that name; give {' or '.join(counted)}")
    if not named:
        labels = [arm.label for arm in results.arms if arm.role != "teacher"]
        near = difflib.get_close_matches(baseline, labels, n=1, cutoff=0.6)
        meant = f"did you mean baseline={shlex.quote(near[0])}? there are " if near else "there are "
        more = f" and {len(labels) - LISTED} more" if labels[LISTED:] else ""
        there = f"{meant}{', '.join(labels[:LISTED])}{more}" if labels else "there are none"
        raise UserError(f"baseline={baseline}: no run has that name; {there}")


def read_records(folder: Path, *, cache: bool = True) -> "Records":
    """The records of the runs below a folder, or of exported studies; raises `UserError` for a damaged one."""
    from analysis.cache import Cache
    from analysis.load import load

    return _exported(folder) if studies(folder) else load(folder, cache=Cache(folder) if cache else None)


def _exported(folder: Path) -> "Records":
    from analysis.studies import read_studies

    try:
        return read_studies(folder)
    except RecordError as error:
        raise UserError(f"runs={folder}: {error}; export the study again with python -m analysis.study") from error


def contents(results: "Results", arguments: Arguments) -> tuple[dict[str, str | bytes], str]:
    """File name → content of analysed records, and a summary of what was read."""
    from analysis.claims import verdicts
    from analysis.costs import costs
    from analysis.csv_frames import csv_frames
    from analysis.figures.curves import many_evaluations
    from analysis.figures.panels import all_panels
    from analysis.figures.static import static_figures
    from analysis.headline import headline
    from analysis.page import html_page, markdown_page
    from analysis.published_tables import all_tables
    from analysis.table import frame_csv
    from analysis.topics import members

    alpha, head, of_topic, spent = arguments.ema, headline(results), members(results), costs(results)
    every = all_tables(results, members=of_topic, costs=spent, verdicts=verdicts(results))
    tables = {table.name: table for table in every}
    panels = all_panels(results, members=of_topic, costs=spent, alpha=alpha)
    static = static_figures(panels, of_topic, smooth=many_evaluations(results)) if arguments.figures else ()
    files: dict[str, str | bytes] = {
        "report.html": html_page(results, head, tables, panels, of_topic, alpha=alpha),
        "report.md": markdown_page(head, tables),
        **{f"tables/{name}.csv": table.csv() for name, table in tables.items()},
        **{f"tables/{name}.tex": table.latex() for name, table in tables.items()},
        **{f"tables/{name}.csv": frame_csv(frame) for name, frame in csv_frames(results, alpha=alpha).items()},
        **{f"figures/{name}": figure for name, figure in static},
    }
    return files, f"{head.ran}; {len(results.excluded)} records left out, each listed there"


def _refusal(runs: Path, damage: Sequence[tuple[str, str, str]]) -> str:
    named = "; ".join(f"{run}: {left_out}: {reason}" for run, left_out, reason in damage[:LISTED])
    more = f"; and {len(damage) - LISTED} more" if damage[LISTED:] else ""
    return f"runs={runs}: strict=true allows no damage: {named}{more}; repair or move these, or set strict=false"


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return command.run(argv, __doc__, Arguments, write_report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
