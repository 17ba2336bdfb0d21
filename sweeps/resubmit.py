"""Resubmit runs: `python -m sweeps.resubmit [study=NAME] [state=failed,lost,timeout] [name=…] [cluster=…]`.

Takes runs that ended without finishing, as they were submitted; they continue from their checkpoints. The same code
refuses a refused run again, so one is retried only with `state=refused` or `--new-code`.

A study's folder may come from somebody else. Code in it that differs from this checkout's, and commands among the
settings of its cluster, are run only with `--as-submitted`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opd.cli import key_values
from opd.config import plugins
from opd.config.identity import as_today
from opd.errors import UserError
from opd.printable import say, warn
from opd.records.config_argument import key_variable
from opd.records.files import read_json
from sweeps import cli, cluster, executor, selection, snapshot, state, submission
from sweeps.executor import Settings
from sweeps.ledger import Ledger, Submission
from sweeps.run_state import RESUMABLE, STATES, RunState
from sweeps.selection import KEYS

FLAGS = {
    "--dry-run": "lists the runs and submits nothing",
    "--new-code": "runs them with this checkout's code instead of their submission's",
    "--as-submitted": "runs the code and the commands in the study's folder, without these checks",
}
DEFAULT = "failed,lost,timeout"


def main(arguments: Sequence[str]) -> None:
    """The command; raises `UserError`."""
    flags, given = cli.flags(arguments, FLAGS)
    cluster_arguments, rest = cluster.split(given)
    filters = {"state": DEFAULT + (",refused" if "--new-code" in flags else "")} | key_values(
        plugins.without(rest), KEYS
    )
    if wrong := [one for one in filters["state"].split(",") if one in STATES and one not in RESUMABLE]:
        raise UserError(f"state={wrong[0]}: such runs cannot be resubmitted; choose among {', '.join(RESUMABLE)}")
    settings = cluster.load(cluster_arguments) if cluster_arguments else None
    number = sum(resubmit(ledger, filters, settings, flags) for ledger in selection.studies(filters))
    if not number:
        print(f"nothing to do: no run is {filters['state'].replace(',', ' or ')}")


def resubmit(ledger: Ledger, filters: Mapping[str, str], settings: Settings | None, flags: set[str]) -> int:
    """Submit a study's selected runs, without `settings` each to the cluster of its last submission; their number."""
    if "--dry-run" in flags:
        for warning in ledger.intact_submissions()[1]:
            warn(warning)
        return len(_selected(ledger, filters))
    with ledger.lock():
        submission.recover(ledger)
        selected = _selected(ledger, filters)
        state.correct_records(ledger, selected)
        owners = ledger.owners()
        groups: dict[tuple[str, str], list[tuple[str, Submission]]] = {}
        for run in selected:
            if run.run not in owners:
                say(f"  {run.run}: was not submitted by a sweep; repeat its own command")
                continue
            owner = owners[run.run][0]
            groups.setdefault((owner.code, owner.id if settings is None else ""), []).append((run.run, owner))
        for runs in groups.values():
            _submit(ledger, runs, settings, flags)
        return len(selected)


def _selected(ledger: Ledger, filters: Mapping[str, str]) -> list[RunState]:
    selected = selection.runs(ledger, filters)
    for run in selected:
        say(f"  {run.run}: {run.state} after step {run.step}{f', {run.error}' if run.error else ''}")
    return selected


def _submit(ledger: Ledger, runs: Sequence[tuple[str, Submission]], settings: Settings | None, flags: set[str]) -> None:
    """Submit runs whose submissions were of one code and, without `settings`, are one."""
    owner, code = runs[0][1], snapshot.current()
    where = settings or settings_of(owner)
    configs = [read_json(one.folder / "configs" / f"{run}.yaml") for run, one in runs]
    if "--new-code" not in flags:
        snapshot.verify(ledger.folder / "code" / owner.code)
    if "--as-submitted" not in flags:
        _refuse_foreign(ledger, owner, code.hash, flags, where if settings is None else None, configs)
    array_size = executor.get(where.kind).max_array_size()
    if "--new-code" not in flags:
        code = code._replace(hash=owner.code)
    pairs = [(run, config) for (run, _), config in zip(runs, configs, strict=True)]
    name = submission.submit_runs(ledger, where, "resubmit", pairs, code, array_size)
    print(f"submitted {len(runs)} runs as {name}")


def _refuse_foreign(
    ledger: Ledger,
    owner: Submission,
    here: str,
    flags: set[str],
    recorded: Settings | None,
    configs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse to run or send what only the study's folder asks for; `recorded` are settings taken from there.

    Raises:
        UserError: with the flags that allow it.
    """
    who = f"study={ledger.study.name}: {owner.id}"
    if owner.code != here and "--new-code" not in flags:
        raise UserError(
            f"{who} ran other code ({owner.code}, and this is {here}); give --new-code to run this checkout's, or "
            f"--as-submitted for the copy in {ledger.folder / 'code' / owner.code}"
        )
    if recorded is not None and (keys := executor.get(recorded.kind).commands(recorded)):
        raise UserError(
            f"{who} runs commands of its own (cluster.{keys[0]} in {owner.folder}); give --as-submitted to run them "
            f"again, or your own settings with cluster={recorded.kind}"
        )
    if names := {name for config in configs if (name := key_variable(config)) is not None}:
        raise UserError(
            f"{who} sends the environment variable {min(names)} to servers that its configs name; give --as-submitted "
            "to allow it"
        )
    for config in configs:
        try:
            plugins.refuse_missing(config.get("plugins") or [], who)
        except UserError as error:
            raise UserError(f"{error}, or --as-submitted") from None


def settings_of(owner: Submission) -> Settings:
    """The settings of the cluster that a submission went to; raises `UserError` or `RecordError`."""
    values: dict[str, Any] = read_json(owner.folder / "cluster.json")
    values.pop("code", None)
    return cluster.parse(as_today({"cluster": values})["cluster"], owner.cluster)


if __name__ == "__main__":
    cli.run(main)
