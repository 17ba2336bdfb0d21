"""A site that answers the hub's client as the hub would, on loopback: repositories are made, files and commits kept."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from tests.loopback import JsonSite


class HubSite(JsonSite):
    """Keeps what it is sent; use as a context manager.

    Attributes:
        token: the only one that may write.
        private: repository → whether it was made private.
        files: repository → path → bytes, as its last commit has them.
        commits: repository and message of each commit, in order.
        refuses: a status with which every commit is answered, once set.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[tuple[str, str]] = []
        self.refuses: int | None = None
        self._objects: dict[str, bytes] = {}
        super().__init__()

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        if method == "PUT":
            self._objects[path.rpartition("/")[2]] = body
            return 200, {}
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid token"}
        return self._answer(path, body)

    def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/.]+)(.*)", path)
        if match is None or match[1] not in self.files:
            return 404, {"error": "Repository not found"}
        repository, rest = match[1], match[2]
        if rest == "/preupload/main":
            files = [self._mode(repository, file) for file in json.loads(body)["files"]]
            return 200, {"files": files}
        if rest == ".git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if rest == "/commit/main":
            return self._commit(repository, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": repository, "sha": "0" * 40, "siblings": [], "private": self.private[repository]}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.url}/{name}"}
        if name in self.files:
            return 409, {"error": "You already created this model repo", **url}
        self.private[name], self.files[name] = asked.get("visibility") == "private", {}
        return 200, url

    def _mode(self, repository: str, file: dict[str, Any]) -> dict[str, Any]:
        large, there = file["path"].endswith(".safetensors"), self.files[repository].get(file["path"])
        oid = None
        if there is not None:
            as_git = hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
            oid = hashlib.sha256(there).hexdigest() if large else as_git
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        if self.refuses is not None:
            return self.refuses, {"error": "The storage of me is full"}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append((repository, value["summary"]))
            elif line["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self._objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                self.files[repository][value["path"]] = content
        return 200, {"success": True, "commitUrl": f"{self.url}/{repository}/commit/{'0' * 40}", "commitOid": "0" * 40}
