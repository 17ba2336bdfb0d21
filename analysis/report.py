"""python -m analysis.report runs=DIR out=DIR

Reads every run directory under `runs` and writes report.html (one page, opens from disk without a network), report.md,
tables/*.csv and *.tex (LaTeX, with booktabs) and figures/*.svg and *.png to `out`. Broken, unfinished and foreign runs
are listed in them with the reason.

  runs=DIR          the folder to read, as outputs or outputs/demo; or a study's exports, as docs/results/tiny, which
                    `python -m analysis.study` makes
  out=DIR           the folder to write to, made if it is not there
  baseline=default  the run that the others are compared with: a name, or name-confighash where several have the name
  ema=0.15          weight of the newest value in the moving averages of the curves: above 0, at most 1
  bootstrap=5000    resamples behind the interval of each rank: 100 to 100000
  seed=0            seed of the resamples: 0 or more; same records, same arguments, same bytes
  wandb=SOURCE      training curves from Weights & Biases beside those of the records: FILE.csv, an export of a panel or
                    of a history (several with commas between), or ENTITY/PROJECT, asked over the network. A run that
                    is called as one of runs= is taken for that one, whose own records come first
  strict=false      true: no report where anything is broken, missing, foreign or there twice; unfinished runs are none
                    of these
  figures=true      false: no figures/, which take a while; the page has them all the same
  cache=true        keeps what it reads in DIR/.analysis, so that the next report of a big folder takes seconds; safe to
                    delete, used only where no record has changed since, and the report is the same without it
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.study_tables import is_study
from opd.errors import UserError
from opd.records.run_dir import RecordError, find_runs, write_whole

if TYPE_CHECKING:
    from analysis.load import Records
    from analysis.results import Results


@dataclass(frozen=True)
class Arguments:
    """What the command was given; the module's docstring says what each is."""

    runs: Path
    out: Path
    baseline: str = "default"
    ema: float = 0.15
    bootstrap: int = 5000
    seed: int = 0
    wandb: str = ""
    strict: bool = False
    figures: bool = True
    cache: bool = True


_RIGHT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "ema": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "bootstrap": ("a whole number from 100 to 100000", lambda value: 100 <= value <= 100_000),
    "seed": ("a whole number, 0 or more", lambda value: value >= 0),
    "strict": ("true or false", lambda value: True),
    "figures": ("true or false", lambda value: True),
    "cache": ("true or false", lambda value: True),
}
_TRUE = {"true": True, "false": False}
NAMED = 3  # of what strict=true refuses


def parse(argv: Sequence[str]) -> Arguments:
    """key=value arguments → `Arguments`; raises `UserError`."""
    kinds = {field.name: field for field in fields(Arguments)}
    given: dict[str, Any] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key not in kinds or not equals:
            raise UserError(f"{argument} is no argument; the arguments are {'=, '.join(kinds)}=")
        if key in given or not value:
            raise UserError(f"{key}= is given {'twice' if key in given else 'without a value'}; give it one value")
        given[key] = _value(key, value, kinds[key].type)
    for key, field in kinds.items():
        if key not in given and field.default is MISSING:
            raise UserError(f"{key}= is missing; give a folder, as {key}=DIR")
    return Arguments(**given)


def _value(key: str, text: str, kind: Any) -> Any:
    what, right = _RIGHT.get(key, ("", lambda value: True))
    try:
        value = _TRUE[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{key}={text} is not {what}") from None
    if not right(value):
        raise UserError(f"{key}={text} is not {what}")
    return value


def write_report(arguments: Arguments) -> str:
    """Reads, analyses, writes; returns one sentence on what was written. Raises `UserError`."""
    if not arguments.runs.is_dir():
        raise UserError(f"runs={arguments.runs} is no folder; give one that holds run directories, as runs=outputs")
    if not arguments.wandb and not is_study(arguments.runs) and not find_runs(arguments.runs):
        raise UserError(
            f"runs={arguments.runs} holds no run directory (one with a config.yaml or status.json) and no runs.parquet"
        )
    made, what = build(arguments)
    write(arguments.out, made)
    return f"{arguments.out / 'report.html'}: {what}"


def write(out: Path, made: Mapping[str, str | bytes]) -> None:
    """Writes file name → content under `out`; raises `UserError`."""
    try:
        for name, content in made.items():
            write_whole(out / name, content)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}; give another folder") from error


def build(arguments: Arguments) -> tuple[dict[str, str | bytes], str]:
    """File name → content, and how much was read. A pure function of the records and the arguments."""
    from analysis.cache import Cache
    from analysis.contrasts import Bootstrap
    from analysis.followed import with_followed
    from analysis.load import load
    from analysis.results import analyse
    from analysis.wandb_export import read_export

    if is_study(arguments.runs):
        records = _exported(arguments.runs)
    else:
        records = load(arguments.runs, cache=Cache(arguments.runs) if arguments.cache else None)
    if arguments.strict and records.damage:
        raise UserError(_refusal(arguments.runs, records.damage))
    if arguments.wandb:
        records = with_followed(records, read_export(arguments.wandb))
    bootstrap = Bootstrap(count=arguments.bootstrap, seed=arguments.seed)
    return contents(analyse(records, baseline=arguments.baseline, bootstrap=bootstrap), arguments)


def _exported(folder: Path) -> "Records":
    from analysis.read_study import read_study

    try:
        return read_study(folder)
    except RecordError as error:
        raise UserError(f"runs={folder}: {error}; export the study anew, with python -m analysis.study") from error


def contents(results: "Results", arguments: Arguments) -> tuple[dict[str, str | bytes], str]:
    """`build` of what was read and analysed."""
    from analysis.cells import frame_csv
    from analysis.claims import verdicts
    from analysis.costs import costs
    from analysis.exports import exports
    from analysis.figures.curves import many_evaluations
    from analysis.figures.panels import panels
    from analysis.figures.prints import prints
    from analysis.headline import headline
    from analysis.page import html_page, markdown_page
    from analysis.published_tables import all_tables
    from analysis.topics import members

    alpha, head, of_topic, spent = arguments.ema, headline(results), members(results), costs(results)
    shown = all_tables(results, members=of_topic, costs=spent, verdicts=verdicts(results))
    tables = {table.name: table for table in shown}
    drawn = panels(results, members=of_topic, costs=spent, alpha=alpha)
    printed = prints(drawn, of_topic, smooth=many_evaluations(results)) if arguments.figures else ()
    made: dict[str, str | bytes] = {
        "report.html": html_page(results, head, tables, drawn, of_topic, alpha=alpha),
        "report.md": markdown_page(head, tables),
        **{f"tables/{name}.csv": table.csv() for name, table in tables.items()},
        **{f"tables/{name}.tex": table.latex() for name, table in tables.items()},
        **{f"tables/{name}.csv": frame_csv(frame) for name, frame in exports(results, alpha=alpha).items()},
        **{f"figures/{name}": figure for name, figure in printed},
    }
    return made, f"{head.ran}; {len(results.excluded)} left out, each named there"


def _refusal(runs: Path, damage: Sequence[tuple[str, str, str]]) -> str:
    named = "; ".join(f"{run}: {left_out}: {reason}" for run, left_out, reason in damage[:NAMED])
    more = f"; and {len(damage) - NAMED} more" if damage[NAMED:] else ""
    return (
        f"runs={runs}: strict=true leaves nothing out: {named}{more}; mend or move what is named, or set strict=false"
    )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or 2 for what the user can mend, said in one sentence."""
    if {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return 0
    try:
        print(write_report(parse(argv)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not in UTF-8 loses a character, not the report
    sys.exit(main(sys.argv[1:]))
