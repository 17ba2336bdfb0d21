"""A command as its user types it, in this process: what it says and how it ends."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from sweeps import cli


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
