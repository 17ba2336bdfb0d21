"""What a tracker is told of a config, and how it may be lost."""

import sys
from typing import Any

import pytest

from opd.errors import UserError
from opd.records.run_dir import RunDir
from opd.watch.mlflow_tracker import _allowed
from opd.watch.tracked import Tracker, differs, tracked_id
from opd.watch.tracker import PACKAGES, FaultTolerant, track
from tests.integration.conftest import composed


def test_tracked_id_is_stable():
    one = {"name": "a", "study": "s", "seed": 0, "gamma": 0.5}
    assert tracked_id(one) == tracked_id({**one, "tracker": {"kind": "wandb"}, "profile": True})
    ids = {tracked_id(each) for each in (one, {**one, "seed": 1}, {**one, "study": "t"}, {**one, "gamma": 0.1})}
    assert len(ids) == 4 and all(len(each) == 16 and each.isalnum() for each in ids)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ""),
        (["gamma=0.5", "seed=3", "tracker=wandb"], "gamma=0.5"),
        (["+experiment=hard_switch", "optim.lr=0.01"], "optim.lr=0.01"),
        (["+experiment=hellinger", "scale=small"], ""),
        (["name=mine", "divergence=tsallis"], "divergence=tsallis divergence.alpha=1.5"),
    ],
)
def test_a_run_is_told_apart_by_what_its_experiment_does_not_set(overrides: list[str], expected: str):
    assert differs(composed(overrides)) == expected


def test_failed_tracker_warns_once(capsys: pytest.CaptureFixture[str]):
    class Broken(Tracker):
        calls = 0

        def log(self, line: Any) -> None:
            self.calls += 1
            raise BrokenPipeError("the service is gone\nand more")

    broken = Broken()
    tracker = FaultTolerant(broken, "wandb")
    for _ in range(3):
        tracker.log({"step": 1})
    tracker.page(1, "")
    tracker.finish(failed=False)
    assert broken.calls == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "wandb is lost (the service is gone); the run and its records go on" in said


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio", "mlflow"])
def test_refuses_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    install = rf"run `python -m pip install {PACKAGES[name]}`, or set tracker=none$"
    with pytest.raises(UserError, match=rf"^tracker={name}: {name} is not installed; {install}"):
        track(composed([f"tracker={name}"]), RunDir(tmp_path))


def test_a_password_in_mlflows_address_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass-word@127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert type(track(composed(["tracker=mlflow"]), RunDir(tmp_path))) is Tracker
    said = capfd.readouterr()
    assert said.err.count("opd: warning: tracker: mlflow is lost") == 1 and "pass-word" not in said.out + said.err


def test_refuses_trackio_where_its_variables_name_another_place(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/runs")
    with pytest.raises(UserError, match=r"^tracker=trackio: TRACKIO_SPACE_ID is set.*`trackio sync --project opd`"):
        track(composed(["tracker=trackio"]), RunDir(tmp_path))


def test_mlflow_gets_names_that_it_allows():
    assert _allowed("evaluate/aime24/mean@8") == "evaluate/aime24/mean_at_8"
    assert _allowed("evaluate/so+so/best@8_resampled") == "evaluate/so_so/best_at_8_resampled"


def test_refuses_wandb_without_login(monkeypatch: pytest.MonkeyPatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"^tracker=wandb: .*; log in with `wandb login`, or set tracker.mode=offline"):
        track(composed(["tracker=wandb"]), RunDir(tmp_path))
    assert "\n" not in "".join(str(file) for file in tmp_path.iterdir())


def test_no_tracker_without_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert type(track(composed([]), RunDir(tmp_path))) is Tracker


def test_tracker_does_not_change_run_id():
    from opd.check.config import as_dict
    from opd.config.identity import run_id

    watched = composed(["tracker=wandb", "profile=true", "rollouts.every=1"])
    assert run_id(as_dict(watched)) == run_id(as_dict(composed([])))
