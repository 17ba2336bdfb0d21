"""A site that answers wandb's client as its own would, on loopback, and can fall silent."""

import json
import threading
from collections.abc import Mapping
from typing import Any

from tests.loopback import JsonSite

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


class WandbSite(JsonSite):
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
        super().__init__()

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        super().__exit__(*error)

    def answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]] | None:
        if self.silent.is_set():
            self._closed.wait()
            return None
        return 200, self._answer(path, body)

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
