"""Teachers on servers with vLLM's OpenAI-compatible API, which returns `prompt_logprobs` of token ids."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2 as httpx
import torch

from opd.data.batch import Rollout, TeacherScores, TopTokens
from opd.errors import UserError
from opd.ranks.dist import Ranks
from opd.teacher.honest import refuse_impossible
from opd.teacher.local import Teachers, response_tokens, scores_of_tokens, sequences
from opd.teacher.replicas import Replica, Replicas, Unavailable

# vLLM cannot write -inf in JSON and sends this instead.
NO_PROBABILITY = -9999.0

# Of one token's score in an answer, with its name and the text of the token.
BYTES_OF_A_SCORE = 1024


@dataclass(frozen=True)
class Server:
    """One teacher on its servers.

    Args:
        model: what it must serve: a name, or the directory or hub id that a server has loaded it from.
        longest: the tokens of the longest sequence that it will score.
        responses_per_request: how many sequences go in one request.
        concurrency: how many requests wait for an answer at a time.
        likeliest: how many of the likeliest tokens to return at each position, in addition to the sequence's own.
        vocab_size: ids from here on are no tokens of the student's, and are left out of the likeliest.
    """

    model: str
    replicas: Replicas
    longest: int
    responses_per_request: int
    concurrency: int
    likeliest: int = 0
    vocab_size: int | None = None

    async def check(self) -> list[str]:
        """Where the served models were loaded from, by the servers that answer; the others are checked when first used.

        Raises:
            UserError: none answers, or one serves another model, or too short sequences.
        """
        roots, reason = [], ""
        async with self.replicas.client() as client:
            for replica in self.replicas.all:
                try:
                    async with asyncio.timeout(self.replicas.timeout):
                        roots.append(await self._check_model(client, replica))
                except (Unavailable, TimeoutError) as error:
                    reason = str(error) or f"no answer within {self.replicas.timeout:g} s"
        if not roots:
            urls = " and ".join(replica.url for replica in self.replicas.all)
            raise UserError(
                f"{self.replicas.name}: {urls} cannot be reached ({reason}); start it with `vllm serve {self.model}`, "
                "or give the URL at which it is"
            )
        return roots

    async def score(self, rows: Sequence[list[int]]) -> list[TopTokens]:
        """The log-probs of all tokens of each row but the first, given those before, at temperature 1."""
        size, slots = self.responses_per_request, asyncio.Semaphore(self.concurrency)
        async with self.replicas.client() as client:

            async def part(start: int) -> list[TopTokens]:
                async with slots:
                    batch = rows[start : start + size]
                    return await self.replicas.request(lambda replica: self._complete(client, replica, batch))

            parts = await gather_all([part(start) for start in range(0, len(rows), size)])
        return [row for part in parts for row in part]

    async def _complete(
        self, client: httpx.AsyncClient, replica: Replica, rows: Sequence[list[int]]
    ) -> list[TopTokens]:
        if replica.served is None:
            await self._check_model(client, replica)
        body = {
            "model": replica.served,
            "prompt": list(rows),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self.likeliest,
        }
        most = sum(map(len, rows)) * (self.likeliest + 1) * BYTES_OF_A_SCORE
        answer = await self.replicas.post(client, replica, "/v1/completions", body, most=most)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            scores = [
                _parse_positions(row, choice["prompt_logprobs"], self.likeliest, self.vocab_size)
                for row, choice in zip(rows, choices, strict=True)
            ]
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{self.replicas.name}: {replica.url} does not answer with prompt_logprobs of the {len(rows)} "
                "sequences that it was asked about; serve the teacher with vLLM 0.32"
            ) from None
        refuse_impossible(scores, name=f"{self.replicas.name}: {replica.url}")
        return scores

    async def _check_model(self, client: httpx.AsyncClient, replica: Replica) -> str:
        """Checks that it serves the model, and sequences of this length; returns where the model was loaded from."""
        answer = await self.replicas.get(client, replica, "/v1/models")
        try:
            cards = {card["id"]: card for card in answer["data"]}
            roots = {name: card.get("root") or name for name, card in cards.items()}
            lengths = {name: int(card.get("max_model_len") or self.longest + 1) for name, card in cards.items()}
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{self.replicas.name}: {replica.url} does not say which models it serves; serve the teacher with vLLM"
            ) from None
        served = [name for name in cards if _same_model(name, self.model) or _same_model(roots[name], self.model)]
        if not served:
            raise UserError(
                f"{self.replicas.name}: {replica.url} serves {' and '.join(sorted(cards)) or 'nothing'}, not "
                f"{self.model}; name that in teacher.models, or start the server with --served-model-name {self.model}"
            )
        if lengths[served[0]] < self.longest + 1:
            raise UserError(
                f"{self.replicas.name}: {replica.url} takes {lengths[served[0]]} tokens, and the longest prompt, "
                f"max_response_length and one more are {self.longest + 1}; start it with --max-model-len "
                f"{self.longest + 1}, or set shorter responses"
            )
        replica.served = served[0]
        return roots[served[0]]


class ServerTeachers(Teachers):
    """Teachers on servers; every rank requests scores of its own responses."""

    def __init__(self, servers: Sequence[Server], ranks: Ranks, unchecked: Sequence[str] = ()):
        self._servers, self._ranks, self.unchecked = servers, ranks, unchecked

    def __len__(self) -> int:
        return len(self._servers)

    def score(self, rollout: Rollout, needed: Sequence[int]) -> TeacherScores:
        """See `Teachers.score`; there are no entropies."""
        return self.start_scoring(rollout, needed)()

    def start_scoring(self, rollout: Rollout, needed: Sequence[int]) -> Callable[[], TeacherScores]:
        rows = sequences(rollout)
        answers = run_in_background([self._servers[index].score(rows) for index in needed], self._ranks)

        def wait() -> TeacherScores:
            top = {index: response_tokens(rollout, answer) for index, answer in zip(needed, answers(), strict=True)}
            return scores_of_tokens(rollout, len(self), top, self._ranks)

        return wait

    def close(self) -> None:
        pass


def run_in_background(requests: Sequence[Coroutine[Any, Any, Any]], ranks: Ranks) -> Callable[[], list[Any]]:
    """Runs the requests in a background thread. The returned function waits for the answers; every rank must call it.

    Raises:
        UserError: on all ranks, when waiting, if a request of any rank raised one.
    """
    answers: Future[list[Any]] = Future()

    def work() -> None:
        try:
            answers.set_result(asyncio.run(gather_all(requests)))
        except BaseException as error:
            answers.set_exception(error)

    # A daemon thread: a run that ends meanwhile does not wait for its answer.
    Thread(target=work, daemon=True).start()

    def wait() -> list[Any]:
        results, message = [], None
        try:
            results = answers.result()
        except UserError as error:
            message = str(error)
        if messages := [each for each in ranks.gather(message) if each is not None]:
            raise UserError(messages[0])
        return results

    return wait


async def gather_all(requests: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The answers in order; the first failure cancels the other requests."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(request) for request in requests]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


def _parse_positions(
    row: list[int], positions: list[dict[str, Any] | None], likeliest: int, vocab_size: int | None
) -> TopTokens:
    """The log-probs of the row's own tokens, and of the likeliest at each position that are in the vocabulary.

    Raises:
        LookupError, TypeError, ValueError: `positions` are not those of the row.
    """
    ids, logp = [], []
    for token, position in zip(row[1:], positions[1:], strict=True):
        by_id = {int(name): float(each["logprob"]) for name, each in (position or {}).items()}
        if len(by_id) < likeliest:
            raise ValueError
        others = sorted(((number, name) for name, number in by_id.items() if name != token), reverse=True)[:likeliest]
        others = [each for each in others if vocab_size is None or each[1] < vocab_size]
        # A token that is one of the likeliest is listed twice, and in the place of each that is left out.
        numbers = [(by_id[token], token), *others, *[(by_id[token], token)] * (likeliest - len(others))]
        ids.append([name for _, name in numbers])
        logp.append([-math.inf if number <= NO_PROBABILITY else number for number, _ in numbers])
    if positions[0] is not None:
        raise ValueError
    shape = (len(row) - 1, likeliest + 1)
    return TopTokens(torch.tensor(ids, dtype=torch.long).reshape(shape), torch.tensor(logp).reshape(shape))


def _same_model(name: str, model: str) -> bool:
    return name == model or (Path(name).is_dir() and Path(model).is_dir() and Path(name).samefile(model))
