"""Teachers on servers: token by token those of the local engine, and what becomes of each fault of a server."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.data.batch import Rollout, TeacherScores, TopTokens
from opd.errors import UserError
from opd.model.policy import Scorer
from opd.teacher import replicas
from opd.teacher.honest import Probe, check_scores
from opd.teacher.local import LocalTeachers, Teachers
from opd.teacher.replicas import Replicas
from opd.teacher.server import Server, ServerTeachers
from tests.unit.small import ALONE, rollout_of, root, tiny_qwen3
from tests.unit.teacher.tiny_server import Fault, Handler, TinyServer

BOUND = 1e-4
PATIENCE = 30.0  # seconds, of a busy machine


def model(seed: int = 0):
    return tiny_qwen3(seed=seed, dtype=torch.float32)


def local(rollout: Rollout, *seeds: int) -> TeacherScores:
    memory = {"micro_batch_tokens": 64, "logit_chunk": 8, "temperature": 1.0}
    load = [lambda seed=seed: Scorer(root(model(seed)), ALONE, **memory) for seed in seeds]
    return LocalTeachers(load).score(rollout, range(len(seeds)))


@pytest.fixture
def serve() -> Iterator[Callable[..., TinyServer]]:
    """Starts a server of the model with this seed; all stop at the end of the test."""
    started = []

    def serve(seed: int = 0, **knobs) -> TinyServer:
        started.append(TinyServer(model(seed), **knobs))
        return started[-1]

    yield serve
    for server in started:
        server.stop()


def on(
    *urls: str, index: int = 0, timeout: float = 60.0, patience: float = PATIENCE, key: str | None = None, **knobs
) -> Server:
    group = Replicas(urls, name=f"teacher.server.urls.{index}", timeout=timeout, patience=patience, key=key)
    knobs = {"longest": 14, "responses_per_request": 2, "concurrency": 4} | knobs
    return Server(model="teacher", replicas=group, **knobs)


def score(rollout: Rollout, *servers: Server) -> TeacherScores:
    return ServerTeachers(servers, ALONE).score(rollout, range(len(servers)))


def close(found: TeacherScores, expected: TeacherScores, rollout: Rollout) -> bool:
    return bool((found.logp - expected.logp)[:, rollout.mask].abs().max() < BOUND)


@pytest.mark.parametrize("responses_per_request", [1, 2, 16])
def test_server_matches_local_teacher(responses_per_request: int, rollout: Rollout, serve: Callable[..., TinyServer]):
    """Ragged prompts and responses, a prompt of one token and a response of one."""
    assert 1 in rollout.prompt_mask.sum(1) and 1 in rollout.mask.sum(1)
    expected = local(rollout, 0, 1)
    servers = [on(serve(seed).url, responses_per_request=responses_per_request) for seed in (0, 1)]
    found = score(rollout, *servers)
    assert close(found, expected, rollout) and (found.logp[:, ~rollout.mask] == 0).all()
    shifted = torch.roll(expected.logp, 1, -1)
    assert (found.logp - shifted)[:, rollout.mask].abs().max() > 0.1, "a shift by one would be seen"
    assert torch.isnan(found.entropy[:, rollout.mask]).all() and (found.entropy[:, ~rollout.mask] == 0).all()


@pytest.mark.parametrize("likeliest", [1, 4, 13])
def test_likeliest_tokens(likeliest: int, rollout: Rollout, serve: Callable[..., TinyServer]):
    found = score(rollout, on(serve().url, likeliest=likeliest))
    top, order = found.top[0], found.logp[0][rollout.mask]
    assert torch.equal(top.ids[:, 0], rollout.tokens[rollout.mask]) and torch.equal(top.logp[:, 0], order)
    place = 0
    for row in range(len(rollout)):
        prompt, tokens = rollout.prompt[row][rollout.prompt_mask[row]], rollout.tokens[row][rollout.mask[row]]
        with torch.no_grad():
            logp = model()(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for distribution in logp:
            ids, said = top.ids[place], top.logp[place]
            assert (said - distribution[ids]).abs().max() < BOUND
            expected = set(distribution.topk(likeliest).indices.tolist()) | {int(ids[0])}
            assert set(ids.tolist()) == expected
            place += 1
    assert place == len(top.ids)


def test_likeliest_tokens_that_the_student_does_not_have_are_left_out(serve: Callable[..., TinyServer]):
    rollout, url = rollout_of([[2, 3]], [[4, 5, 6]]), serve().url
    every, some = (score(rollout, on(url, likeliest=6, vocab_size=size)).top[0] for size in (None, 8))
    assert (every.ids >= 8).any(), "or the test shows nothing"
    for all_ids, all_logp, ids, logp in zip(every.ids, every.logp, some.ids, some.logp, strict=True):
        known = {int(index): number for index, number in zip(all_ids, all_logp, strict=True) if index < 8}
        assert {int(index): number for index, number in zip(ids, logp, strict=True)} == known
        assert ids[0] == all_ids[0] and len(ids) == len(all_ids)


def test_only_needed_servers_get_requests(rollout: Rollout, serve: Callable[..., TinyServer]):
    ours, theirs = serve(0), serve(1)
    teachers = ServerTeachers([on(ours.url), on(theirs.url)], ALONE)
    assert isinstance(teachers, Teachers) and len(teachers) == 2
    scores = teachers.score(rollout, [1])
    assert not ours.requests and torch.isnan(scores.logp[0]).all() and torch.isfinite(scores.logp[1]).all()


def test_request_concurrency_and_size(serve: Callable[..., TinyServer]):
    rollout = rollout_of([[3, 4]] * 20, [[5, 6, 7]] * 20)
    server = serve(delay=0.3)
    score(rollout, on(server.url, responses_per_request=2, concurrency=3))
    assert [len(request["prompt"]) for request in server.requests] == [2] * 10 and server.most == 3


# ---- faults


def hang(handler: Handler, right: dict[str, Any]) -> None:
    time.sleep(3.0)


def drop(handler: Handler, right: dict[str, Any]) -> None:
    handler.connection.close()


def half(handler: Handler, right: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": ')
    handler.connection.shutdown(2)


def status(number: int) -> Fault:
    return lambda handler, right: handler.answer({"error": {"message": f"this is {number}.\nTrace"}}, number)


def not_json(handler: Handler, right: dict[str, Any]) -> None:
    handler.raw(b"<html>please wait</html>")


def deep(handler: Handler, right: dict[str, Any]) -> None:
    handler.raw(b"[" * 200_000)


def changed(change: Callable[[list[dict[str, Any]]], None]) -> Fault:
    def fault(handler: Handler, right: dict[str, Any]) -> None:
        right["choices"].sort(key=lambda choice: choice["index"])
        change(right["choices"])
        handler.answer(right)

    return fault


@pytest.mark.parametrize(
    "fault", [hang, drop, half, not_json, deep, *map(status, (408, 429, 500, 503))], ids=lambda fault: fault.__name__
)
def test_transient_faults_are_retried(fault: Fault, rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    server.faults = [fault, fault]
    assert close(score(rollout, on(server.url, timeout=1.5 if fault is hang else 60.0)), local(rollout, 0), rollout)
    assert len(server.requests) == 3 + 2


def position(value: Any) -> Fault:
    """One token's log-probability, in the middle of a response."""

    def change(choices: list[dict[str, Any]]) -> None:
        ((token, found),) = choices[0]["prompt_logprobs"][-1].items()
        choices[0]["prompt_logprobs"][-1] = {token: found | {"logprob": value}}

    return changed(change)


NOT_VLLM = "does not answer with prompt_logprobs of the 2 sequences that it was asked about"
LASTING = {
    "NaN": (position(math.nan), "teacher.models.0: its log-probabilities are not finite numbers"),
    "a token without probability": (position(-9999.0), "teacher.models.0: its log-probabilities are not finite"),
    "a log-prob that is None": (position(None), NOT_VLLM),
    "a position that is None": (changed(lambda all: all[0]["prompt_logprobs"].__setitem__(-1, None)), NOT_VLLM),
    "a number for the first token": (changed(lambda all: all[0]["prompt_logprobs"].__setitem__(0, {"1": 1})), NOT_VLLM),
    "too few tokens": (changed(lambda all: all[0]["prompt_logprobs"].pop()), NOT_VLLM),
    "tokens of another response": (changed(lambda all: all[1].update(index=0) or all[0].update(index=1)), NOT_VLLM),
    "a token that was not sent": (
        changed(lambda all: all[0]["prompt_logprobs"].__setitem__(-1, {"1": {"logprob": -1.0}})),
        NOT_VLLM,
    ),
    "too few responses": (changed(lambda all: all.pop()), NOT_VLLM),
    "no log-probs": (changed(lambda all: [each.pop("prompt_logprobs") for each in all]), NOT_VLLM),
    "log-probs that are null": (changed(lambda all: [each.update(prompt_logprobs=None) for each in all]), NOT_VLLM),
    "a list": (lambda handler, right: handler.answer([1]), NOT_VLLM),
    "a refusal": (status(400), r"http://127.0.0.1:\d+ refuses /v1/completions with status 400: this is 400$"),
    "no such path": (status(404), "refuses /v1/completions with status 404"),
}


def endless(handler: Handler, right: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with suppress(OSError):  # the client hangs up
        while True:
            handler.wfile.write(b"10000\r\n" + b"1" * 0x10000 + b"\r\n")


def test_an_endless_answer_is_refused_at_once(rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    server.faults = [endless]
    with pytest.raises(UserError, match=r"answers with more than [\d.]+ MiB, which no scores"):
        score(rollout, on(server.url, concurrency=1))


# ---- a teacher that lies: what it makes of the true log-prob of a token


def lies(number: Callable[[float], float]) -> Callable[[list[dict[str, Any]]], None]:
    def change(choices: list[dict[str, Any]]) -> None:
        for choice in choices:
            for position in filter(None, choice["prompt_logprobs"]):
                for found in position.values():
                    found["logprob"] = number(found["logprob"])

    return change


def shifted(places: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(choices: list[dict[str, Any]]) -> None:
        for choice in choices:
            numbers = [next(iter(each.values()))["logprob"] for each in choice["prompt_logprobs"][1:]]
            for position, number in zip(
                choice["prompt_logprobs"][1:], numbers[places:] + numbers[:places], strict=True
            ):
                next(iter(position.values()))["logprob"] = number

    return change


LIES: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "probabilities": (lies(math.exp), "none can be above 0"),
    "positive": (lies(abs), "none can be above 0"),
    "zeros": (lies(lambda number: 0.0), "scores every token of a text as certain|add up to"),
    "one number": (lies(lambda number: -2.5), "scores different last tokens alike|add up to"),
    "base 10": (lies(lambda number: number / math.log(10)), "add up to|scores a text as"),
    "half the temperature": (lies(lambda number: 2 * number), "scores a text as"),
    "earlier tokens": (
        shifted(-1),
        "its score of a token depends|scores different last tokens alike|add up to",
    ),
    "later tokens": (shifted(1), "its score of a token depends|scores different last tokens alike|add up to"),
}


@pytest.mark.parametrize("likeliest", [0, 4])
@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_refused_before_training(
    lie: str, likeliest: int, serve: Callable[..., TinyServer], tmp_path: Path
):
    server, text = serve(), Probe([3, 4, 5, 6, 7, 8, 9, 10], 5)
    model().save_pretrained(tmp_path)
    asked = {"name": "teacher.server.urls.0", "copy": str(tmp_path)}
    ask = on(server.url, likeliest=likeliest).score
    assert asyncio.run(check_scores(ask, text, **asked)) == []
    server.faults = [changed(LIES[lie][0])] * 4
    with pytest.raises(UserError, match=LIES[lie][1]) as refused:
        asyncio.run(check_scores(ask, text, **asked))
    assert str(refused.value).startswith("teacher.server.urls.0: ") and "\n" not in str(refused.value)


def test_what_could_not_be_compared_is_said(serve: Callable[..., TinyServer]):
    text = Probe([3, 4, 5, 6, 7, 8, 9, 10], 5)
    said = asyncio.run(check_scores(on(serve().url).score, text, name="teacher.server.urls.0", copy=None))
    assert said == ["teacher.server.urls.0: its weights are not at hand, so its scores were not compared with theirs"]


def test_a_probability_above_one_is_refused_in_mid_run(rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    server.faults = [position(0.5)]
    with pytest.raises(UserError, match=r"a log-probability is 0\.5, and none can be above 0"):
        score(rollout, on(server.url, concurrency=1))


@pytest.mark.parametrize("fault", LASTING)
def test_permanent_faults_fail_at_once(fault: str, rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    server.faults = [LASTING[fault][0]]
    began = time.monotonic()
    with pytest.raises(UserError, match=LASTING[fault][1]) as refused:
        score(rollout, on(server.url, concurrency=1))
    assert "\n" not in str(refused.value) and time.monotonic() - began < PATIENCE


def test_refuses_too_few_likeliest_tokens(serve: Callable[..., TinyServer]):
    """Of four it names three, where one of them is the sequence's own: nothing else tells that one is missing."""
    token = int(model()(torch.tensor([[5]])).logits[0, 0].argmax())

    def fewer(choices: list[dict[str, Any]]) -> None:
        named = choices[0]["prompt_logprobs"][-1]
        assert len(named) == 4 and str(token) in named
        named.pop(next(name for name in named if name != str(token)))

    server = serve()
    server.faults = [changed(fewer)]
    with pytest.raises(UserError, match="does not answer with prompt_logprobs of the 1 sequences"):
        score(rollout_of([[5]], [[token]]), on(server.url, likeliest=4))


@pytest.mark.parametrize("fault", [None, hang, status(500)])
def test_gives_up_within_patience(fault, rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    server.faults = [fault] * 100
    if fault is None:
        server.http.server_close()
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        score(rollout, on(server.url, timeout=0.4, patience=0.8))
    said = str(refused.value)
    assert time.monotonic() - began < 0.4 + 0.8 + 10.0
    assert said.startswith(f"teacher.server.urls.0: {server.url} did not answer within the teacher.server.patience of")
    assert said.endswith("the same command goes on from the last checkpoint") and "\n" not in said


# ---- restarts and replicas


def test_waits_for_restarted_server(rollout: Rollout, serve: Callable[..., TinyServer]):
    server, expected = serve(), local(rollout, 0)
    here = on(server.url, patience=20.0)
    assert close(score(rollout, here), expected, rollout)
    server.stop()

    async def while_it_is_away() -> list[TopTokens]:
        asked = asyncio.create_task(here.score([[3, 4, 5]]))
        await asyncio.sleep(0.5)
        assert not asked.done()
        serve(port=server.port)
        return await asked

    (said,) = asyncio.run(while_it_is_away())
    assert said.ids.tolist() == [[4], [5]]
    assert close(score(rollout, here), expected, rollout)


def test_refuses_restarted_server_with_another_model(rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve()
    here = on(server.url, patience=0.1)
    score(rollout, here)
    server.stop()
    with pytest.raises(UserError, match="did not answer"):
        score(rollout, here)
    serve(port=server.port, name="another")
    with pytest.raises(UserError, match=rf"{server.url} serves another, not teacher; name that in teacher.models"):
        score(rollout, here)


def test_round_robin_skips_dead_replica(serve: Callable[..., TinyServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replicas, "FIRST_BACKOFF", 60.0)
    monkeypatch.setattr(replicas, "LONGEST_BACKOFF", 60.0)
    rollout = rollout_of([[3, 4]] * 12, [[5, 6, 7]] * 12)
    one, other, expected = serve(), serve(), local(rollout, 0)
    both = on(one.url, other.url, responses_per_request=1, concurrency=2)
    assert close(score(rollout, both), expected, rollout)
    assert len(one.requests) == len(other.requests) == 6
    other.stop()
    assert close(score(rollout, both), expected, rollout)
    assert len(one.requests) == 18 and both.replicas.all[1].failures == 1, "it was tried once, and then left alone"
    back = serve(port=other.port)
    both.replicas.all[1].available_at = 0
    assert close(score(rollout, both), expected, rollout) and len(back.requests) == 6


# ---- at the start


def test_refuses_unfit_servers_at_start(serve: Callable[..., TinyServer]):
    def refusal(server: TinyServer, **knobs) -> str:
        with pytest.raises(UserError) as refused:
            asyncio.run(on(server.url, **knobs).check())
        assert "\n" not in str(refused.value)
        return str(refused.value).replace(server.url, "URL")

    assert refusal(serve(name="a-model")).startswith(
        "teacher.server.urls.0: URL serves a-model, not teacher; name that"
    )
    assert refusal(serve(), longest=64) == (
        "teacher.server.urls.0: URL takes 64 tokens, and the longest prompt, max_response_length and one more are 65; "
        "start it with --max-model-len 65, or set shorter responses"
    )
    away = serve()
    away.http.server_close()
    assert refusal(away).startswith("teacher.server.urls.0: URL cannot be reached (")
    assert asyncio.run(on(away.url, serve(root="org/model").url).check()) == ["org/model"], "one replica is enough"
    assert asyncio.run(on(serve(name="other", root="teacher").url + "/v1/").check()) == ["teacher"]


def test_api_key_is_sent_and_never_printed(rollout: Rollout, serve: Callable[..., TinyServer]):
    server = serve(key="sk-right")
    assert close(score(rollout, on(server.url, key="sk-right")), local(rollout, 0), rollout)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-right"}
    with pytest.raises(UserError, match="refuses /v1/models with status 401: the key in Bearer ") as refused:
        asyncio.run(on(server.url, key="sk-wrong").check())
    assert "sk-wrong" not in str(refused.value)
