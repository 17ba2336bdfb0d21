"""What a tracker is told of a config, and how it may be lost."""

import sys
from typing import Any

import pytest

from opd.errors import UserError
from opd.records.run_dir import RunDir
from opd.watch.tracker import FaultTolerant, NoTracker, track, tracked_id
from tests.integration.conftest import composed


def test_the_tracked_run_is_this_one_whenever_it_goes_on_and_no_other():
    one = {"name": "a", "study": "s", "seed": 0, "gamma": 0.5}
    assert tracked_id(one) == tracked_id({**one, "tracker": {"kind": "wandb"}, "profile": True})
    ids = {tracked_id(each) for each in (one, {**one, "seed": 1}, {**one, "study": "t"}, {**one, "gamma": 0.1})}
    assert len(ids) == 4 and all(len(each) == 16 and each.isalnum() for each in ids)


def test_a_tracker_that_fails_is_left_alone_after_one_sentence(capsys: pytest.CaptureFixture[str]):
    class Broken(NoTracker):
        calls = 0

        def log(self, line: Any) -> None:
            self.calls += 1
            raise BrokenPipeError("the service is gone\nand more")

    broken = Broken()
    tracker = FaultTolerant(broken)
    for _ in range(3):
        tracker.log({"step": 1})
    tracker.page(1, "")
    tracker.finish(failed=False)
    assert broken.calls == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "wandb is lost (the service is gone); the run and its records go on" in said


def test_wandb_that_is_not_installed_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^tracker=wandb: wandb is not installed; run `python -m pip install wandb`"):
        track(composed(["tracker=wandb"]), RunDir(tmp_path))


def test_wandb_without_a_login_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"^tracker=wandb: .*; log in with `wandb login`, or set tracker.mode=offline"):
        track(composed(["tracker=wandb"]), RunDir(tmp_path))
    assert "\n" not in "".join(str(file) for file in tmp_path.iterdir())


def test_no_tracker_needs_no_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert isinstance(track(composed([]), RunDir(tmp_path)), NoTracker)


def test_a_tracker_changes_no_run_id():
    from opd.check.config import as_dict
    from opd.config.identity import run_id

    watched = composed(["tracker=wandb", "profile=true", "rollouts.every=1"])
    assert run_id(as_dict(watched)) == run_id(as_dict(composed([])))
