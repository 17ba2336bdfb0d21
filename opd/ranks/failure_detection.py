"""Finds out which ranks are lost and why, over the rendezvous store, in parallel with the collectives.

On a lost rank a backend reports a closed connection, or nothing until its time limit, and to most ranks it names the
wrong one. So each rank has a thread that answers for it, and a rank that fails stores its reason. The first rank that
asks reports the result to all others, because the store may be gone before the last one asks.
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

# Seconds within which a live rank answers: its thread waits for nothing else.
PATIENCE = 5.0

# Several groups of one process may use the same store, one after another.
SESSIONS = itertools.count()


class RanksLost(UserError):
    """Ranks `lost` ended or do not answer; `first`: of the remaining ranks this is the lowest."""

    def __init__(self, sentence: str, lost: set[int], first: bool):
        super().__init__(sentence)
        self.lost, self.first = lost, first


@contextmanager
def detect_failures(ranks: Ranks, *, timeout: float, resume: Callable[[], str]) -> Iterator[None]:
    """Answers the other ranks, and turns a failure of the backend into an error that names the lost ranks.

    `timeout` is the backend's, in seconds; `resume` says how the run goes on.

    Raises:
        RanksLost: a collective failed because ranks ended or hang.
    """
    if ranks.size == 1:
        yield
        return
    detector = FailureDetector(ranks.rank, ranks.size)
    try:
        yield
    except BaseException as error:
        if not _is_backend_error(error):
            detector.report_failure(str(error) or type(error).__name__)
            raise
        if not (lost := detector.lost_ranks()):
            raise
        waited = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        no_reason = (
            f"no answer within compute.rank_timeout={timeout}" if waited else "its process ended or is unreachable"
        )
        each = "; ".join(f"rank {rank} of {ranks.size} left: {why or no_reason}" for rank, why in sorted(lost.items()))
        first = set(range(ranks.rank)) <= lost.keys()
        raise RanksLost(f"{each}; {resume()}", set(lost), first) from error
    finally:
        detector.close()


def _is_backend_error(error: BaseException) -> bool:
    # gloo has no exception type of its own; its messages begin with the source file.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class FailureDetector:
    """Answers the other ranks, and asks them."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self.others = [other for other in range(size) if other != rank]
        self.hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self.prefix = f"opd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(SESSIONS)}"
        self.store, own = self._client(), self._client()
        self.reachable = True  # the store
        self.reported: dict[int, str | None] = {}
        self.thread = Thread(target=self._respond, args=(own,), daemon=True)
        self.thread.start()

    def _client(self) -> Any:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.PrefixStore(self.prefix, dist.TCPStore(address, port, is_master=False))  # pyright: ignore[reportPrivateImportUsage]

    def _respond(self, store: Any) -> None:
        with suppress(RuntimeError):  # the store is gone, so nobody can ask
            store.wait([f"ask/{self.rank}"], timedelta(days=365))
            store.set(f"alive/{self.rank}", "")
            store.wait([f"lost/{self.rank}"], timedelta(days=365))
            reported = {int(rank): why for rank, why in json.loads(store.get(f"lost/{self.rank}")).items()}
            self.reported = {rank: why for rank, why in reported.items() if rank != self.rank}
            store.set(f"reported/{self.rank}", "")

    def lost_ranks(self) -> dict[int, str | None]:
        """The ranks that ended, with their reason where they gave one; if there are none, those that hang."""
        results: list[dict[int, str | None]] = []

        def ask() -> None:
            results.append(self._poll())
            self._broadcast(results[0])

        self._with_time_limit(ask)
        # Without an answer the store is gone, and with it rank 0, which hosts it where torchrun does not.
        return results[0] if results else self.reported or {0: None}

    def report_failure(self, reason: str) -> None:
        """Tells the others why this rank fails."""
        self._with_time_limit(lambda: self._store_reason(" ".join(reason.split())))

    def close(self) -> None:
        """Ends the thread."""

        def release() -> None:
            self.store.set(f"ask/{self.rank}", "")
            self.store.set(f"lost/{self.rank}", "{}")

        self._with_time_limit(release)
        if self.reachable:
            self.thread.join(PATIENCE)

    def _with_time_limit(self, action: Callable[[], None]) -> None:
        """Runs `action`; if the store's host is gone or hangs, gives up, and never tries again."""
        if not self.reachable:
            return

        def attempt() -> None:
            with suppress(RuntimeError):
                action()

        thread = Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(2 * PATIENCE)
        self.reachable = not thread.is_alive()

    def _poll(self) -> dict[int, str | None]:
        self.store.set(f"waiting/{self.rank}", "")
        self._request_answers()
        self._wait_for(lambda other: self._has("failure", other) or self._has("waiting", other))
        ended = {
            other: self.store.get(f"failure/{other}").decode() for other in self.others if self._has("failure", other)
        }
        gone: dict[int, str | None] = {other: None for other in self.others if not self._has("alive", other)}
        hung: dict[int, str | None] = {other: None for other in self.others if not self._has("waiting", other)}
        return gone | ended or hung

    def _store_reason(self, reason: str) -> None:
        self.store.set(f"failure/{self.rank}", reason)
        if self.hosts:  # the reason is lost with the store
            self._request_answers()
            self._broadcast({self.rank: reason})

    def _request_answers(self) -> None:
        for other in self.others:
            self.store.set(f"ask/{other}", "")

    def _broadcast(self, lost: dict[int, str | None]) -> None:
        for other in self.others:
            self.store.set(f"lost/{other}", json.dumps(lost))
        if self.hosts:
            self._wait_for(lambda other: other in lost or self._has("reported", other))

    def _wait_for(self, condition: Callable[[int], bool]) -> None:
        """Waits until the condition holds for every other rank, `PATIENCE` seconds at most."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not all(condition(other) for other in self.others):
            time.sleep(0.05)

    def _has(self, what: str, rank: int) -> bool:
        return self.store.check([f"{what}/{rank}"])
