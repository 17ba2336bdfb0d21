"""A real HTTP server on loopback that answers as vLLM's does, from a transformers model, and can be told to fail."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel

# What becomes of one request: given the handler and the right answer, it writes another.
Fault = Callable[["Handler", dict[str, Any]], None]


class TinyServer:
    """Listens from the start until `stop`; at `port` again if that is given.

    `faults` are taken one a completion; `requests` are the bodies of all completions, `most` how many were under way
    at a time.
    """

    def __init__(
        self, model: PreTrainedModel, *, name: str = "teacher", root: str | None = None, max_model_len: int = 64,
        key: str | None = None, port: int = 0, delay: float = 0.0,
    ):  # fmt: skip
        self.model, self.name, self.root, self.max_model_len = model, name, root, max_model_len
        self.key, self.delay = key, delay
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.tiny = self  # pyright: ignore
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @torch.inference_mode()
    def positions(self, row: list[int], likeliest: int) -> list[dict[str, Any] | None]:
        """vLLM's `prompt_logprobs` of a prompt: nothing of the first token; each of the others, and the likeliest."""
        logp = self.model(torch.tensor([row])).logits[0].float().log_softmax(-1)
        found: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(row[1:]):
            named = [token, *logp[place].topk(likeliest).indices.tolist()]
            found.append({str(each): {"logprob": float(logp[place, each]), "decoded_token": "x"} for each in named})
        return found


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        tiny = self.server.tiny  # pyright: ignore
        if self.path != "/v1/models" or self.unauthorized():
            return None if self.path == "/v1/models" else self.answer({"error": {"message": "no such path"}}, 404)
        card = {"id": tiny.name, "root": tiny.root or tiny.name, "max_model_len": tiny.max_model_len}
        return self.answer({"object": "list", "data": [card]})

    def do_POST(self) -> None:
        tiny: TinyServer = self.server.tiny  # pyright: ignore
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.unauthorized():
            return None
        with tiny.lock:
            tiny.requests.append(body)
            tiny.headers.append(dict(self.headers))
            tiny.now += 1
            tiny.most = max(tiny.most, tiny.now)
            fault = tiny.faults.pop(0) if tiny.faults else None
        time.sleep(tiny.delay)
        reply = self.reply(body, fault)
        with tiny.lock:  # before it is sent, for the client may ask again as soon as it has it
            tiny.now -= 1
        reply()

    def reply(self, body: dict[str, Any], fault: Fault | None) -> Callable[[], None]:
        """What to answer with."""
        tiny: TinyServer = self.server.tiny  # pyright: ignore
        if self.path != "/v1/completions" or body["model"] != tiny.name:
            return partial(self.answer, {"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        if body["max_tokens"] != 1:
            return partial(self.answer, {"error": {"message": "this server is asked for the prompt alone"}}, 400)
        if too_long := [row for row in body["prompt"] if len(row) + 1 > tiny.max_model_len]:
            return partial(self.answer, {"error": {"message": f"{len(too_long[0])} tokens are too many"}}, 400)
        choices = [
            {"index": index, "text": "", "prompt_logprobs": tiny.positions(row, body["prompt_logprobs"])}
            for index, row in enumerate(body["prompt"])
        ]
        right = {"object": "text_completion", "choices": choices[::-1]}
        return partial(self.answer, right) if fault is None else partial(fault, self, right)

    def unauthorized(self) -> bool:
        key, given = self.server.tiny.key, self.headers.get("Authorization")  # pyright: ignore
        if key is None or given == f"Bearer {key}":
            return False
        self.answer({"error": {"message": f"the key in {given} is not ours"}}, 401)
        return True

    def answer(self, content: Any, status: int = 200) -> None:
        self.raw(json.dumps(content).encode(), status)

    def raw(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
