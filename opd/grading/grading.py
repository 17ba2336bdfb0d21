r"""Grade mathematics: whether the answer of a response equals the gold answer. Responses are hostile text.

Plain text and plain numbers are compared here; the rest goes to math-verify in worker processes
(`opd/grading/worker.py`), started when first needed and kept for the next call. A worker that takes longer than
the time limit, or dies, is replaced; its answer alone is lost. Nothing is evaluated or unpickled: workers are sent,
and send, lines of JSON.
"""

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd.errors import UserError
from opd.grading.answer import Extracted, find_answer, find_gold, plain, reconciled, same

_AnswerPair = tuple[Extracted, Extracted]  # answer, gold

# A worker ends itself at the time limit; this many seconds later it is killed from here.
GRACE = 1.0

# Seconds. Importing sympy and building math-verify's parsers takes one, and many on a busy machine.
START_LIMIT = 120.0

# More processes gain little: nearly every answer is decided without one.
MOST_WORKERS = 4


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    `answer` is the extracted text, None without one. `reason` is equal, different, no answer, timeout, error, or the
    text of a plug-in's grader. `score` in [0, 1] is 1 or 0, as `correct` is, unless given.
    """

    correct: bool
    answer: str | None
    reason: str
    score: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.score):
            object.__setattr__(self, "score", float(self.correct))


def grade_many(
    predictions: Sequence[str], golds: Sequence[str], *, timeout: float, workers: int | None = None
) -> list[Grade]:
    """Grade each response against its gold answer. No response can raise, hang or affect another's grade.

    Args:
        predictions: full responses, from which `opd.grading.answer.find_answer` extracts the answers.
        golds: the right answers, one per response.
        timeout: seconds per answer for math-verify; an answer that takes longer is wrong, with reason "timeout".
        workers: the maximum number of processes; None for one per core, `MOST_WORKERS` at most.

    Raises:
        ValueError: where the two sequences differ in length, or `timeout` or `workers` is not positive.
        UserError: where no worker can be started (math-verify is not installed, no memory).
    """
    if not timeout > 0 or (workers is not None and workers < 1):
        raise ValueError(f"timeout and workers must be positive, not {timeout} and {workers}")
    pairs = list(zip(predictions, golds, strict=True))
    grades: dict[tuple[str, str], Grade] = {}
    pending: dict[_AnswerPair, list[tuple[str, str]]] = {}
    for pair in dict.fromkeys(pairs):
        answer, gold = find_answer(pair[0]), find_gold(pair[1])
        if answer and gold:
            answer, gold = reconciled(answer, gold)
        equal = same(answer, gold) if answer and gold else False
        if equal is None and answer and gold:
            pending.setdefault((answer, gold), []).append(pair)
        else:
            grades[pair] = _grade(equal, answer.text if answer else None)
    requests = {json.dumps({"answer": vars(answer), "gold": vars(gold)}): (answer, gold) for answer, gold in pending}
    texts = {request: answer.text if answer.bare else None for request, (answer, _) in requests.items()}
    for request, grade in _ask(texts, timeout, workers).items():
        grades |= dict.fromkeys(pending[requests[request]], grade)
    return [grades[pair] for pair in pairs]


def grade_in_workers(requests: Sequence[str], timeout: float) -> dict[str, Grade]:
    """The grades of requests to `opd.grading.worker`, as JSON; `timeout` is in seconds per request.

    Raises:
        UserError: where no worker can be started.
    """
    return _ask(dict.fromkeys(requests), timeout, None)


def stop_workers() -> None:
    """Stop the idle worker processes; a later call starts new ones."""
    while _idle:
        _idle.pop().stop()


def _grade(equal: bool | None, answer: str | None, reason: str | None = None) -> Grade:
    reason = reason or ("no answer" if answer is None else "equal" if equal else "different")
    return Grade(reason == "equal", None if answer is None else plain(answer), reason)


# ---- workers


def _ask(requests: Mapping[str, str | None], timeout: float, workers: int | None) -> dict[str, Grade]:
    """Grade requests, each mapped to the answer that its grade has if its worker fails."""
    todo, grades, failures = deque(requests), {}, []

    def serve() -> None:
        worker = None
        try:
            while todo:
                worker = worker or _take_worker()
                with suppress(IndexError):  # another thread took the last one
                    request = todo.popleft()
                    grades[request], worker = _judge(request, requests[request], worker, timeout)
        except Exception as failure:  # raised again below, in the caller's thread
            failures.append(failure)
        if worker:
            _idle.append(worker)

    # Daemons, and not joined when interrupted: each ends by itself within its time limit.
    most = workers or min(os.cpu_count() or 1, MOST_WORKERS)
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(most, len(requests)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        todo.clear()
    if len(grades) < len(requests):
        raise failures[0]
    return grades


def _judge(request: str, answer: str | None, worker: "_Worker", timeout: float) -> tuple[Grade, "_Worker | None"]:
    """The grade, and the worker if it is reusable. A worker that died, except by the time limit, is replaced once."""
    for last in (False, True):
        try:
            verdict = worker.ask(request, timeout)
        except _WorkerDied as death:
            worker.stop()
            if death.timed_out or last:
                return _grade(False, answer, "timeout" if death.timed_out else "error"), None
            worker = _take_worker()
        else:
            if verdict["last"]:
                worker.stop()
            return _parse_verdict(verdict), None if verdict["last"] else worker
    raise AssertionError  # the loop returns


def _parse_verdict(verdict: Mapping[str, Any]) -> Grade:
    """A worker's verdict as a grade; a faulty grader may have returned anything."""
    if "equal" in verdict:
        return _grade(verdict["equal"], verdict["answer"])
    score, answer, reason = verdict["score"], verdict["answer"], verdict["reason"]
    if not (isinstance(score, int | float) and 0 <= score <= 1 and isinstance(reason, str)):
        return _grade(False, None, "error")
    return Grade(verdict["correct"] is True, answer if isinstance(answer, str) else None, reason, float(score))


def _take_worker() -> "_Worker":
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


class _WorkerDied(Exception):
    """The worker ended before it replied; `timed_out`: by the time limit."""

    def __init__(self, timed_out: bool):
        self.timed_out = timed_out


class _Worker:
    """A running `opd.grading.worker` process."""

    def __init__(self) -> None:
        # By path and with -P: the worker needs no package of ours on its path, and no file beside it shadows a library.
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
            )
        except OSError as error:
            raise UserError(f"the grading worker does not start: {error}") from error
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.requests, self.replies, self.errors = self.process.stdin, self.process.stdout, self.process.stderr
        self.imported: set[str | None] = {None}  # graders; importing one is not part of an answer's time
        with self._killed_after(START_LIMIT):
            ready = self.replies.readline()
        if not ready:
            why = (self.errors.read().strip().splitlines() or [f"it was not ready after {START_LIMIT:.0f} s"])[-1]
            self.stop()
            raise UserError(f"the grading worker does not start: {why}")

    def ask(self, request: str, timeout: float) -> dict[str, Any]:
        """Return the worker's verdict; raises `_WorkerDied`."""
        content = json.loads(request)
        if (grader := content.get("grader")) not in self.imported:
            self._reply({name: content[name] for name in ("grader", "path")}, START_LIMIT)
            self.imported.add(grader)
        return self._reply({**content, "timeout": timeout}, timeout)

    def _reply(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        started = time.monotonic()
        with self._killed_after(timeout + GRACE):
            try:
                print(json.dumps(request), file=self.requests, flush=True)
                line = self.replies.readline()
            except OSError:
                line = ""
        if not line.endswith("\n"):  # nothing, or a partial line
            alarmed = self.process.wait() == -signal.SIGALRM
            raise _WorkerDied(timed_out=alarmed or time.monotonic() - started > timeout)
        return json.loads(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.requests, self.replies, self.errors):
            with suppress(OSError):
                stream.close()

    @contextmanager
    def _killed_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


_idle: list[_Worker] = []
atexit.register(stop_workers)
os.register_at_fork(after_in_child=_idle.clear)  # a fork's workers are its parent's
