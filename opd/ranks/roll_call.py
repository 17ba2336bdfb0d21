"""Which ranks are still there, and why one left: asked over the store that they met at, beside their collectives.

A backend says of a lost rank that a connection was closed, or nothing until its time limit; to all ranks but its
neighbours it names the wrong one. So each rank has a thread that answers for it, and one that fails leaves a word.
What the first to ask has found is told to all, for a rank that hears of it last may find the store gone.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch.distributed as dist

from opd.errors import UserError
from opd.ranks.dist import Ranks

# Seconds within which a rank that is there answers: its thread waits for nothing else.
PATIENCE = 5.0

# A process may meet the others several times over one store.
MEETINGS = itertools.count()


class RanksLost(UserError):
    """Ranks are gone or do not answer: `lost` are they, `first` says whether none below this one is still there."""

    def __init__(self, sentence: str, lost: set[int], first: bool):
        super().__init__(sentence)
        self.lost, self.first = lost, first


@contextmanager
def answering(ranks: Ranks, *, timeout: float, resume: Callable[[], str]) -> Iterator[None]:
    """While it holds, this rank answers the others, and a failure of the backend becomes a sentence on who is lost.

    `timeout` is the backend's, in seconds; `resume` says how the run goes on.

    Raises:
        RanksLost: where a collective failed because ranks left or hang.
    """
    if ranks.size == 1:
        yield
        return
    call = RollCall(ranks.rank, ranks.size)
    try:
        yield
    except BaseException as error:
        if not _by_the_backend(error):
            call.leave(str(error) or type(error).__name__)
            raise
        if not (lost := call.lost()):
            raise
        waited = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        silent = f"no answer within compute.rank_timeout={timeout}" if waited else "its process ended or is unreachable"
        each = "; ".join(f"rank {rank} of {ranks.size} left: {why or silent}" for rank, why in sorted(lost.items()))
        first = set(range(ranks.rank)) <= lost.keys()
        raise RanksLost(f"{each}; {resume()}", set(lost), first) from error
    finally:
        call.close()


def _by_the_backend(error: BaseException) -> bool:
    # gloo has no kind of its own; its errors begin with the file that they come from.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class RollCall:
    """This rank's answers to the others, and its questions."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self.others = [other for other in range(size) if other != rank]
        self.hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.prefix = f"opd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(MEETINGS)}"
        self.store, own = self._client(), self._client()
        self.reachable = True  # the store
        self.told: dict[int, str | None] = {}
        self.thread = Thread(target=self._answer, args=(own,), daemon=True)
        self.thread.start()

    def _client(self) -> Any:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.PrefixStore(self.prefix, dist.TCPStore(address, port, is_master=False))  # pyright: ignore[reportPrivateImportUsage]

    def _answer(self, store: Any) -> None:
        with suppress(RuntimeError):  # the store is gone, and with it who might ask
            store.wait([f"ask/{self.rank}"], timedelta(days=365))
            store.set(f"here/{self.rank}", "")
            store.wait([f"lost/{self.rank}"], timedelta(days=365))
            told = {int(rank): why for rank, why in json.loads(store.get(f"lost/{self.rank}")).items()}
            self.told = {rank: why for rank, why in told.items() if rank != self.rank}
            store.set(f"told/{self.rank}", "")

    def lost(self) -> dict[int, str | None]:
        """The ranks that left, with their reason where they gave one, and those that are there but do not go on."""
        found: list[dict[int, str | None]] = []

        def ask() -> None:
            found.append(self._ask())
            self._tell(found[0])

        self._in_time(ask)
        return found[0] if found else self.told or {0: None}  # which holds the store where torchrun does not

    def leave(self, reason: str) -> None:
        """Tells the others why this rank goes."""
        self._in_time(lambda: self._leave(" ".join(reason.split())))

    def close(self) -> None:
        """Ends the answers."""

        def dismiss() -> None:
            self.store.set(f"ask/{self.rank}", "")
            self.store.set(f"lost/{self.rank}", "{}")

        self._in_time(dismiss)
        if self.reachable:
            self.thread.join(PATIENCE)

    def _in_time(self, action: Callable[[], None]) -> None:
        """The store's host may have gone, or hang: then no call to it comes back, and it is not waited for again."""
        if not self.reachable:
            return

        def attempt() -> None:
            with suppress(RuntimeError):
                action()

        thread = Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(2 * PATIENCE)
        self.reachable = not thread.is_alive()

    def _ask(self) -> dict[int, str | None]:
        self.store.set(f"failed/{self.rank}", "")
        self._call()
        self._until(lambda other: self._has("left", other) or self._has("failed", other))
        left = {other: self.store.get(f"left/{other}").decode() for other in self.others if self._has("left", other)}
        gone: dict[int, str | None] = {other: None for other in self.others if not self._has("here", other)}
        hung: dict[int, str | None] = {other: None for other in self.others if not self._has("failed", other)}
        return gone | left or hung

    def _leave(self, reason: str) -> None:
        self.store.set(f"left/{self.rank}", reason)
        if self.hosts:  # the word is lost with its store
            self._call()
            self._tell({self.rank: reason})

    def _call(self) -> None:
        for other in self.others:
            self.store.set(f"ask/{other}", "")

    def _tell(self, lost: dict[int, str | None]) -> None:
        for other in self.others:
            self.store.set(f"lost/{other}", json.dumps(lost))
        if self.hosts:
            self._until(lambda other: other in lost or self._has("told", other))

    def _until(self, heard: Callable[[int], bool]) -> None:
        """Waits until this holds of each of the others."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not all(heard(other) for other in self.others):
            time.sleep(0.05)

    def _has(self, what: str, rank: int) -> bool:
        return self.store.check([f"{what}/{rank}"])
