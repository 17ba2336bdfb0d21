"""Replicated servers: round robin; a server that fails is skipped for a while, an outage of all is waited out."""

import asyncio
import itertools
import json
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

# Seconds for which a server is skipped after its first failure, and at most.
FIRST_BACKOFF, LONGEST_BACKOFF = 0.2, 10.0

# Minimum timeout of a last retry, in seconds.
MIN_TIMEOUT = 0.1

# Bytes that an answer may have beside its scores.
SMALL = 2**22

# Status codes of a server that starts, is busy or fails temporarily.
RETRYABLE = {408, 425, 429, *range(500, 600)}

# It logs every request.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class Unavailable(Exception):
    """A server did not answer, but a retry may succeed; the text is the reason, as a clause."""


@dataclass
class Replica:
    """One server. `served` is its name for its model, once known; `failures` counts consecutive ones."""

    url: str
    served: str | None = None
    failures: int = 0
    available_at: float = 0.0

    def back_off(self, now: float) -> None:
        """Skips the server for a while, longer each time; concurrent requests that fail together count as one."""
        if now < self.available_at:
            return
        self.served, self.failures = None, self.failures + 1
        longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (self.failures - 1))
        self.available_at = now + longest * random.Random().uniform(0.5, 1)


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
        """A client for `get` and `post`, to be closed."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(headers=headers, timeout=None, limits=httpx.Limits(max_connections=None))

    async def request(self, send: Callable[[Replica], Awaitable[T]]) -> T:
        """Calls `send` with an available server, and retries on the next one while it raises `Unavailable`.

        Raises:
            UserError: what `send` raises, or no server answered within `patience`.
        """
        first_failure = None
        while True:
            replica = self._next()
            await asyncio.sleep(max(0.0, replica.available_at - time.monotonic()))
            left = math.inf if first_failure is None else first_failure + self.patience - time.monotonic()
            limit = min(self.timeout, max(left, MIN_TIMEOUT))
            try:
                async with asyncio.timeout(limit):
                    answer = await send(replica)
                replica.failures = 0
                return answer
            except TimeoutError:
                reason = f"no answer within {limit:.3g} s"
            except Unavailable as error:
                reason = str(error)
            now = time.monotonic()
            replica.back_off(now)
            first_failure = now if first_failure is None else first_failure
            if min(each.available_at for each in self.all) >= first_failure + self.patience:
                raise UserError(self.timeout_message(reason))

    def timeout_message(self, reason: str) -> str:
        """The error message for servers that do not answer."""
        urls = " and ".join(each.url for each in self.all)
        return (
            f"{self.name}: {urls} did not answer within the teacher.server.patience of {self.patience:g} s ({reason}); "
            "start it again, and the same command goes on from the last checkpoint"
        )

    async def get(self, client: httpx.AsyncClient, replica: Replica, path: str) -> Any:
        """The JSON at `path`; see `post`."""
        return await self._send(client, replica, "GET", path, None)

    async def post(self, client: httpx.AsyncClient, replica: Replica, path: str, body: Any, *, most: int = 0) -> Any:
        """The JSON that answers `body`, of at most `most` bytes above `SMALL`.

        Raises:
            Unavailable: a retry may succeed.
            UserError: it would not.
        """
        return await self._send(client, replica, "POST", path, body, most)

    async def _send(
        self, client: httpx.AsyncClient, replica: Replica, method: str, path: str, body: Any, most: int = 0
    ) -> Any:
        try:
            async with client.stream(method, replica.url + path, json=body) as answer:
                content = await self._read(answer, replica, SMALL + most)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"{self.name}: {replica.url} is no URL of a server ({self._first_line(error)})") from None
        except httpx.TransportError as error:
            raise Unavailable(self._first_line(error)) from None
        if answer.status_code in RETRYABLE:
            raise Unavailable(f"status {answer.status_code}{self._reason(content)}")
        if answer.status_code != 200:
            raise UserError(
                f"{self.name}: {replica.url} refuses {path} with status {answer.status_code}{self._reason(content)}"
            )
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Unavailable("what it answers is not JSON") from None

    async def _read(self, answer: httpx.Response, replica: Replica, most: int) -> bytes:
        """The body. Raises `UserError` as soon as it is longer than `most` bytes."""
        parts, size = [], 0
        async for part in answer.aiter_bytes():
            parts.append(part)
            if (size := size + len(part)) > most:
                raise UserError(
                    f"{self.name}: {replica.url} answers with more than {most / 2**20:.3g} MiB, which no scores "
                    "of what it was asked have"
                )
        return b"".join(parts)

    def _reason(self, body: bytes) -> str:
        """The message in an error's body, as the rest of a clause."""
        try:
            content = json.loads(body)
            message = content.get("error") or content
            message = message if isinstance(message, str) else message["message"]
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            return ""
        return f": {self._first_line(message)}" if isinstance(message, str) else ""

    def _first_line(self, text: object) -> str:
        line = (str(text).strip() or type(text).__name__).splitlines()[0].rstrip(".")[:200]
        return line if self.key is None else line.replace(self.key, "(the key)")

    def _next(self) -> Replica:
        """The next available server, or else the one that is available first."""
        now = time.monotonic()
        for _ in self.all:
            if (replica := next(self._round)).available_at <= now:
                return replica
        return min(self.all, key=lambda each: each.available_at)
