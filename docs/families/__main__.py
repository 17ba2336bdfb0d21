"""Which families of transformers work: a trial of each, in a process of its own, as families.json and families.md.

python -m docs.families                    all of them, some minutes
python -m docs.families qwen3 gemma2       these; the others' rows stay
python -m docs.families --print gemma2     these, without writing anything
"""

import multiprocessing
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from docs.families import page
from docs.families.small import FAMILIES
from docs.families.trial import Outcome, configs, trial

LIMIT = 120  # seconds of a trial


def main() -> None:
    """Tries the families that the command line names, or all, and writes what was found."""
    parser = ArgumentParser("python -m docs.families", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--print", action="store_true", dest="only", help="write nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trials at once")
    given = parser.parse_args()
    if unknown := [name for name in given.families if name not in FAMILIES]:
        parser.error(f"{unknown[0]}: is no causal family of transformers {page.VERSION}")
    record = {} if given.only else page.read()
    for family, outcome in outcomes(list(dict.fromkeys(given.families)) or list(FAMILIES), workers=given.workers):
        print(f"{family:28}{outcome.state:10}{outcome.sampler}{outcome.sentence}", flush=True)
        record[family] = replace(outcome, kind=FAMILIES[family])
        if not given.only:  # at once, so that a table that is interrupted can go on
            page.write(record)


def outcomes(families: Sequence[str], *, workers: int, limit: float = LIMIT) -> Iterator[tuple[str, Outcome]]:
    """The outcome of each family as its trial ends; one that does not end within `limit` seconds is killed."""
    fork = multiprocessing.get_context("fork")  # a trial has everything imported already
    configs()
    waiting, running = list(families), dict[Any, tuple[Any, str, float, Any]]()
    with tempfile.TemporaryDirectory() as root:
        while waiting or running:
            while waiting and len(running) < workers:
                family = waiting.pop(0)
                receiver, sender = fork.Pipe(duplex=False)
                (folder := Path(root, family)).mkdir()
                process = fork.Process(target=_child, args=(family, folder, sender))
                process.start()
                sender.close()
                running[receiver] = process, family, time.monotonic() + limit, folder
            ready = wait(list(running), timeout=1)
            for receiver, (process, family, until, _) in list(running.items()):
                if receiver not in ready and time.monotonic() < until:
                    continue
                try:
                    outcome = (
                        receiver.recv() if receiver in ready else Outcome("fails", sentence=f"no end in {limit:g} s")
                    )
                except EOFError:
                    outcome = Outcome("fails", sentence="its process died")
                process.kill()
                process.join()
                del running[receiver]
                yield family, outcome


def _child(family: str, folder: Path, sender: Any) -> None:
    with (folder / "said").open("w") as said:  # what its runs print
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
    sender.send(trial(family, folder))


if __name__ == "__main__":
    main()
