"""Tries runs again: `python -m sweeps.resubmit [study=NAME] [state=failed,lost,timeout] [name=…] [cluster=…]`.

Takes the runs that ended without having finished, as they were submitted, and they go on from their checkpoints. A
refused run is refused again by the same code, so it takes `state=refused` or `--new-code` to try one.

What a study's folder keeps to be run, its copy of the code and its cluster's commands, may be anybody's: code other
than this checkout's, and commands at all, are run only with `--as-submitted`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opd.cli import key_values
from opd.config.identity import as_today
from opd.errors import UserError
from opd.records.recorded import key_variable
from opd.records.run_dir import read_json
from sweeps import choose, cli, cluster, slurm, snapshot, state
from sweeps.cluster import Cluster, Slurm
from sweeps.handover import hand_over, recover, same_code
from sweeps.ledger import Ledger, Submission

FLAGS = {
    "--dry-run": "names the runs and submits nothing",
    "--new-code": "runs them with this checkout's code, not with that of their submission",
    "--as-submitted": "runs the code and the commands that the study's folder keeps, whatever they are",
}
KEYS = ("study", "paths.outputs", "state", "name", "seed", "run")
DEFAULT = "failed,lost,timeout"


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, given = cli.flags(arguments, FLAGS)
    mine, rest = cluster.split(given)
    filters = key_values(rest, KEYS)
    retried = DEFAULT + (",refused" if "--new-code" in flags else "")
    filters = {"state": retried} | filters
    if wrong := [one for one in filters["state"].split(",") if one in state.STATES and one not in state.RESUMABLE]:
        raise UserError(f"state={wrong[0]}: such runs need no other try; of use are {', '.join(state.RESUMABLE)}")
    if mine:
        cluster.read(mine)
    books = choose.studies(filters.get("paths.outputs", "outputs"), filters.get("study"))
    tried = sum(again(book, filters, mine, flags) for book in books)
    if not tried:
        print(f"nothing to do: no run is {filters['state'].replace(',', ' or ')}")


def again(book: Ledger, filters: dict[str, str], mine: Sequence[str], flags: set[str]) -> int:
    """Submits a study's runs that the filters leave; returns their number."""
    if "--dry-run" in flags:
        return len(_chosen(book, filters, tell=True))
    with book.lock():
        recover(book)
        chosen = _chosen(book, filters, tell=True)
        groups: dict[tuple[str, str], list[str]] = {}
        owners = {run: one for one in book.submissions() if one.abandoned is None for run in one.runs}
        state.settle(book, chosen)
        for one in chosen:
            if one.run not in owners:
                print(f"  {one.run}: was not submitted by a sweep; repeat its own command")
                continue
            owner = owners[one.run]
            groups.setdefault((owner.code, "" if mine else owner.id), []).append(one.run)
        for (code, _), runs in groups.items():
            _submit(book, owners, runs, code, mine, flags)
        return len(chosen)


def _chosen(book: Ledger, filters: dict[str, str], *, tell: bool) -> list[state.Seen]:
    found = choose.chosen(state.look(book, metrics=False).runs, {"state": DEFAULT} | filters)
    for one in found if tell else []:
        print(f"  {one.run}: {one.state} after step {one.step}{f', {one.error}' if one.error else ''}")
    return found


def _submit(
    book: Ledger, owners: dict[str, Submission], runs: list[str], code: str, mine: Sequence[str], flags: set[str]
) -> None:
    owner, now = owners[runs[0]], snapshot.current()
    where = cluster.read(mine) if mine else _as_before(book, owner)
    configs = [_config(book, owners[run], run) for run in runs]
    if "--new-code" not in flags:
        snapshot.kept(book.folder / "code" / code)
    if "--as-submitted" not in flags:
        _refuse_to_run(book, owner, code, now.hash, flags, None if mine else where, configs)
    largest = slurm.require() if isinstance(where, Slurm) else 0
    if "--new-code" in flags:
        same_code(book, now, True)
    else:
        now = now._replace(hash=code)
    submitted = hand_over(book, where, "resubmit", list(zip(runs, configs, strict=True)), now, largest)
    print(f"submitted {len(runs)} runs as {submitted}")


def _refuse_to_run(
    book: Ledger,
    owner: Submission,
    code: str,
    here: str,
    flags: set[str],
    where: Cluster | None,
    configs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuses what the study's folder alone says is to be run or sent; `where` is null where the command line says it.

    Raises:
        UserError: with the ways to go on.
    """
    said = f"study={book.study.name}: {owner.id} "
    if code != here and "--new-code" not in flags:
        raise UserError(
            f"{said}was of other code ({code}, and this is {here}); give --new-code to run this checkout's, or "
            f"--as-submitted for the copy in {book.folder / 'code' / code}"
        )
    if isinstance(where, Slurm) and (kept := [key for key in ("setup", "python", "sbatch") if getattr(where, key)]):
        raise UserError(
            f"{said}runs commands of its own (cluster.{kept[0]} in {book.submission_folder(owner.id)}); give "
            "--as-submitted to run them again, or your own with cluster=slurm"
        )
    if names := {name for config in configs if (name := key_variable(config)) is not None}:
        raise UserError(
            f"{said}sends the environment variable {min(names)} to servers that its configs name; give --as-submitted "
            "if it may"
        )


def _as_before(book: Ledger, owner: Submission) -> Cluster:
    values: dict[str, Any] = read_json(book.submission_folder(owner.id) / "cluster.json")
    values.pop("code", None)
    return cluster.parse_cluster(as_today({"cluster": values})["cluster"], owner.cluster)


def _config(book: Ledger, owner: Submission, run: str) -> dict[str, Any]:
    return read_json(book.submission_folder(owner.id) / "configs" / f"{run}.yaml")


if __name__ == "__main__":
    cli.run(main)
