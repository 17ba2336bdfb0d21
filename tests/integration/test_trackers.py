"""Runs that other trackers follow: killed after a later step than their checkpoint, they are one curve there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opd.records.run_dir import RunDir
from opd.train import run_dir, train
from opd.watch.mlflow_tracker import MLflowTracker
from opd.watch.tensorboard_tracker import TensorBoardTracker
from opd.watch.tracked import Tracker, numbers
from opd.watch.trackio_tracker import TrackioTracker
from tests.integration.conftest import composed, once_told

Points = list[tuple[str, int, float]]  # every name, step and value that a tracker shows, sorted


def in_tensorboard(folder: RunDir, _: Path) -> Points:
    """What its own reader finds in a run's directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    names = events.Tags()["tensors"]
    return sorted((name, each.step, each.tensor_proto.double_val[0]) for name in names for each in events.Tensors(name))


def in_trackio(folder: RunDir, _: Path) -> Points:
    """What its store has of the only run of that name."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    assert [run.name for run in trackio.Api().runs("opd")] == [folder.path.name]
    kept = SQLiteStorage.get_logs("opd", folder.path.name)
    return sorted(
        (name, row["step"], value) for row in kept for name, value in row.items() if name not in ("step", "timestamp")
    )


def in_mlflow(folder: RunDir, store: Path) -> Points:
    """What its store has of the only run of that name that is not deleted."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("opd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.path.name, "FINISHED")
    assert run.data.params["optim.lr"] == str(folder.config()["optim"]["lr"])
    histories = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    return sorted((each.key, each.step, each.value) for history in histories for each in history)


class Killed(BaseException): ...


def killed() -> None:
    raise Killed


@pytest.fixture(autouse=True)
def trackios_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One in a folder of the test: trackio reads the variable as it is imported."""
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    yield


@pytest.mark.parametrize(
    ("kind", "tracker", "read", "named"),
    [
        ("tensorboard", TensorBoardTracker, in_tensorboard, lambda name: name),
        ("trackio", TrackioTracker, in_trackio, lambda name: None if name == "time" else name),
        pytest.param(
            *("mlflow", MLflowTracker, in_mlflow, lambda name: name.replace("@", "_at_")), marks=pytest.mark.apart
        ),
    ],
    ids=["tensorboard", "trackio", "mlflow"],
)
def test_a_run_that_was_killed_is_one_curve_of_what_its_records_have(
    kind: str,
    tracker: type[Tracker],
    read: Callable[[RunDir, Path], Points],
    named: Callable[[str], str | None],
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    store = tmp_path / "mlflow.db"
    knobs = [f"tracker={kind}", "checkpoint.every=2", f"paths.outputs={tmp_path}"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    config = composed([*small_run, "evaluate.sources.arithmetic.num=2", *knobs])
    with pytest.raises(Killed), once_told(3, killed, tracker):
        train(config)
    assert train(config).state == "finished"

    lines: list[dict[str, Any]] = run_dir(config).metrics()
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    recorded = [(named(name), line["step"], value) for line in lines for name, value in numbers(line).items()]
    assert read(run_dir(config), store) == sorted(point for point in recorded if point[0] is not None)
    said = capfd.readouterr()
    assert said.out.count(f"tracked by {kind}") == 2 and "is lost" not in said.err
