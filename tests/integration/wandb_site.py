"""A site that answers wandb's client as its own would, on loopback, and can fall silent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = {
    "id": "bucket",
    "config": "{}",
    "summaryMetrics": "{}",
    "historyTail": "[]",
    "eventsTail": "[]",
    "historyLineCount": 0,
    "eventsLineCount": 0,
    "logLineCount": 0,
    "project": {"id": "project", "name": "opd", "entity": {"id": "entity", "name": "lab"}},
}


class WandbSite:
    """Keeps what it is told; use as a context manager.

    Attributes:
        rows: what each run has logged, in order, by the run's id.
        begun: the variables of every call that begins a run.
        silent: once set, no request is answered.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.begun: list[dict[str, Any]] = []
        self.silent = threading.Event()
        self._closed = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if site.silent.is_set():
                    site._closed.wait()
                    return
                answer = json.dumps(site._answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "WandbSite":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            return {"data": self._graphql(json.loads(body))}
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.rows.setdefault(run, []).extend(json.loads(line) for line in history.get("content", ()))
        return {}

    def _graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        told = query.get("variables") or {}
        name = told.get("name")
        if beginning := "mutation UpsertBucket" in query["query"]:
            self.begun.append(told)
        return {
            "viewer": {"id": "viewer", "entity": "lab", "username": "lab", "flags": "{}", "teams": {"edges": []}},
            "model": {"bucket": {**BUCKET, "name": name} if name in self.rows else None},
            "upsertBucket": {"bucket": {**BUCKET, "name": name}, "inserted": beginning and name not in self.rows},
            "createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": []},
            "serverInfo": {"features": []},
        }
