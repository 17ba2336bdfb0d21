"""A command as its user types it, in this process: what it says and how it ends."""

import importlib
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sweeps import cli
from sweeps.cluster import Cluster, Local
from sweeps.ledger import Ledger, write_submission

RUN = "mis-01234567-s0"
LOCAL = Local("local", max_parallel=1, ranks=1, max_retries=0)


def failed_study(
    outputs: Path, code: str = "c", cluster: Cluster = LOCAL, config: dict[str, Any] | None = None
) -> Ledger:
    """The study `main` with one submission, `one`, of one run, which has begun and failed."""
    book = Ledger(outputs / "main")
    folder = book.submission_folder("one")
    config = {"paths": {"outputs": str(outputs)}, "study": "main"} | (config or {})
    write_submission(folder, cluster.__dict__, [RUN], [config], code)
    book.append("intent", submission="one", sweep="gamma", cluster=cluster.kind, code=code, runs=[RUN], portion=1)
    book.append("submitted", submission="one", jobs=[], pid=1, host="elsewhere")
    attempts = [{"event": "start"}, {"event": "end", "status": 1, "verdict": "failed"}]
    (folder / "attempts" / f"{RUN}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    return book


def said(module: str, *arguments: str) -> str:
    """What `sweeps.<module>` prints, called in this process: most commands take longer to start than to do."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        importlib.import_module(f"sweeps.{module}").main(arguments)
    return printed.getvalue()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a command that is to be refused; its one sentence. A traceback fails the test."""

    def run(command: ModuleType, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(command.main)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("opd: ") and said.count("\n") == 1, said
        return said

    return run
