"""A run that Weights & Biases follows over a network: what it is told, and the network's end."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd.check.config import as_dict
from opd.train import run_dir, train
from opd.watch import wandb_tracker
from opd.watch.tracked import tracked_id
from tests.integration.conftest import composed, once_told
from tests.integration.wandb_site import WandbSite


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbSite]:
    import wandb

    wandb.teardown()
    with WandbSite() as answering:
        monkeypatch.setenv("WANDB_BASE_URL", answering.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield answering
        wandb.teardown()


def test_a_run_is_told_step_by_step_and_is_the_same_run_when_it_goes_on(site, small_run, tmp_path: Path):
    config = composed([*small_run, "tracker=wandb", "tracker.entity=lab", f"paths.outputs={tmp_path}"])
    with once_told(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert train(config).state == "preempted"
    assert train(config).state == "finished"

    lines = run_dir(config).metrics()
    ((run, rows),) = site.rows.items()
    assert run == tracked_id(as_dict(config))
    told = [row for row in rows if "rollouts" not in row]
    assert [row["step"] for row in told] == [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for row, line in zip(told, lines, strict=True):
        assert row["loss"] == line["loss"] if line["step"] else "loss" not in line
    assert {each["name"] for each in site.begun} == {run}
    begun = site.begun[0]
    assert (begun["groupName"], begun["displayName"]) == ("main", run_dir(config).path.name)
    told = json.loads(begun["config"])
    assert told["num_steps"]["value"] == 4 and "num_steps=4" in told["differs"]["value"]
    assert "a" * 40 not in json.dumps(site.begun)


def test_a_run_whose_network_ends_is_finished_and_says_so(
    site, small_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(wandb_tracker, "PATIENCE", 5.0)
    config = composed([*small_run, "tracker=wandb", "tracker.entity=lab", f"paths.outputs={tmp_path}"])
    with once_told(2, site.silent.set):
        assert train(config).state == "finished"
    said = capfd.readouterr().err
    assert said.count("opd: warning: tracker: wandb is lost (Timed out finishing run)") == 1
    assert [line["step"] for line in run_dir(config).metrics()] == [0, 1, 2, 3, 4]
