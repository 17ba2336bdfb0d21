"""Replicated servers: requests go round, a server that fails is skipped for a while, an outage of all is waited out."""

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2 as httpx

from opd.errors import UserError

T = TypeVar("T")

# Seconds for which a server is skipped after a first failure, and at most.
FIRST_REST, LONGEST_REST = 0.2, 10.0

# Seconds that a last try may take.
SHORTEST = 0.1

# Status codes of a server that starts, is busy or fails temporarily.
PASSING = {408, 425, 429, *range(500, 600)}

# It tells of every request.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Unavailable(Exception):
    """A server did not answer, but may do so a moment later; the text is the reason, as a clause."""


@dataclass
class Replica:
    """One server. `served` is its name for its model, once known; `failures` counts consecutive ones."""

    url: str
    served: str | None = None
    failures: int = 0
    wakes: float = 0.0

    def rest(self, now: float) -> None:
        """Skips it for a while, longer each time; concurrent requests that fail together count as one."""
        if now < self.wakes:
            return
        self.served, self.failures = None, self.failures + 1
        longest = min(LONGEST_REST, FIRST_REST * 2 ** (self.failures - 1))
        self.wakes = now + longest * random.Random().uniform(0.5, 1)


class Replicas:
    """Servers of one teacher.

    Args:
        urls: where each is, without a path of the API.
        name: the config key to name in a refusal.
        timeout: seconds that a request may take.
        patience: seconds after a request's first failure until it is given up.
        key: goes with every request as a bearer token, and into no message; None for none.
    """

    def __init__(self, urls: Sequence[str], *, name: str, timeout: float, patience: float, key: str | None):
        self.all = [Replica(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.name, self.timeout, self.patience, self.key = name, timeout, patience, key
        self._round = itertools.cycle(self.all)

    def client(self) -> httpx.AsyncClient:
        """What `get` and `post` need, to be closed."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(headers=headers, timeout=None, limits=httpx.Limits(max_connections=None))

    async def ask(self, question: Callable[[Replica], Awaitable[T]]) -> T:
        """`question` of a server that is awake, and of others, or again, while it is `Unavailable`.

        Raises:
            UserError: what `question` raises, or none of the servers answered within `patience`.
        """
        first_failure = None
        while True:
            replica = self._next()
            await asyncio.sleep(max(0.0, replica.wakes - time.monotonic()))
            left = math.inf if first_failure is None else first_failure + self.patience - time.monotonic()
            limit = min(self.timeout, max(left, SHORTEST))
            try:
                async with asyncio.timeout(limit):
                    answer = await question(replica)
                replica.failures = 0
                return answer
            except TimeoutError:
                reason = f"no answer within {limit:.3g} s"
            except Unavailable as error:
                reason = str(error)
            now = time.monotonic()
            replica.rest(now)
            first_failure = now if first_failure is None else first_failure
            if min(each.wakes for each in self.all) >= first_failure + self.patience:
                raise UserError(self.gave_up(reason))

    def gave_up(self, reason: str) -> str:
        """The sentence for servers that do not answer."""
        urls = " and ".join(each.url for each in self.all)
        return (
            f"{self.name}: {urls} did not answer within the teacher.server.patience of {self.patience:g} s ({reason}); "
            "start it again, and the same command goes on from the last checkpoint"
        )

    async def get(self, client: httpx.AsyncClient, replica: Replica, path: str) -> Any:
        """The JSON at `path`; see `post`."""
        return await self._send(client, replica, "GET", path, None)

    async def post(self, client: httpx.AsyncClient, replica: Replica, path: str, body: Any) -> Any:
        """The JSON that answers `body`.

        Raises:
            Unavailable: it may answer later. UserError: it refuses, and would again.
        """
        return await self._send(client, replica, "POST", path, body)

    async def _send(self, client: httpx.AsyncClient, replica: Replica, method: str, path: str, body: Any) -> Any:
        try:
            answer = await client.request(method, replica.url + path, json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"{self.name}: {replica.url} is no URL of a server ({self._said(error)})") from None
        except httpx.TransportError as error:
            raise Unavailable(self._said(error)) from None
        if answer.status_code in PASSING:
            raise Unavailable(f"status {answer.status_code}{self._reason(answer)}")
        if answer.status_code != 200:
            raise UserError(
                f"{self.name}: {replica.url} refuses {path} with status {answer.status_code}{self._reason(answer)}"
            )
        try:
            return answer.json()
        except ValueError:
            raise Unavailable("what it answers is not JSON") from None

    def _reason(self, answer: httpx.Response) -> str:
        """What an error's body says, as the rest of a clause."""
        try:
            content = answer.json()
            said = content.get("error") or content
            said = said if isinstance(said, str) else said["message"]
        except (ValueError, LookupError, AttributeError, TypeError):
            return ""
        return f": {self._said(said)}" if isinstance(said, str) else ""

    def _said(self, text: object) -> str:
        line = (str(text).strip() or type(text).__name__).splitlines()[0].rstrip(".")[:200]
        return line if self.key is None else line.replace(self.key, "(the key)")

    def _next(self) -> Replica:
        """The next server that is not skipped, or else the one to be retried first."""
        now = time.monotonic()
        for _ in self.all:
            if (replica := next(self._round)).wakes <= now:
                return replica
        return min(self.all, key=lambda each: each.wakes)
