"""Experiment trackers, by `tracker=NAME`. A run whose tracker fails goes on without it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opd.check.credentials import without_credentials
from opd.config.schema import MLflow, NoTracker, RunConfig, TensorBoard, Trackio, Wandb
from opd.errors import UserError, first_line
from opd.printable import warn
from opd.records.run_dir import RunDir
from opd.watch.mlflow_tracker import MLflowTracker
from opd.watch.tensorboard_tracker import TensorBoardTracker
from opd.watch.tracked import Tracker
from opd.watch.trackio_tracker import TrackioTracker
from opd.watch.wandb_tracker import WandbTracker

# What pip installs for each.
PACKAGES = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow-skinny sqlalchemy alembic",
}


class FaultTolerant(Tracker):
    """A tracker whose first failure is a warning, after which it is not used any more."""

    def __init__(self, tracker: Tracker, name: str):
        self.tracker, self.name = tracker, name

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with self._guarded():
            self.tracker.begin(lines)

    def log(self, line: Mapping[str, Any]) -> None:
        with self._guarded():
            self.tracker.log(line)

    def page(self, step: int, html: str) -> None:
        with self._guarded():
            self.tracker.page(step, html)

    def finish(self, failed: bool) -> None:
        with self._guarded():
            self.tracker.finish(failed)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lost, self.tracker = self.tracker, Tracker()
            _warn_lost(self.name, error)
            lost.abandon()


def _warn_lost(name: str, error: Exception) -> None:
    reason = without_credentials(first_line(error)).rstrip(".")
    warn(f"tracker: {name} is lost ({reason}); the run and its records go on without it")


def track(config: RunConfig, folder: RunDir) -> Tracker:
    """Starts the tracker that `config` names.

    Raises:
        UserError: where it is not installed, or needs a login or a project that it is not given.
    """
    if isinstance(config.tracker, NoTracker):
        return Tracker()
    name = config.tracker.kind
    try:
        return FaultTolerant(_started(config, folder), name)
    except ImportError as error:
        raise UserError(
            f"tracker={name}: {error.name or name} is not installed; run `python -m pip install {PACKAGES[name]}`, or "
            "set tracker=none"
        ) from None
    except UserError:
        raise
    except Exception as error:
        _warn_lost(name, error)
        return Tracker()


def _started(config: RunConfig, folder: RunDir) -> Tracker:
    match config.tracker:
        case Wandb() as knobs:
            return WandbTracker(config, folder, knobs)
        case TensorBoard() as knobs:
            return TensorBoardTracker(config, folder, knobs)
        case Trackio() as knobs:
            return TrackioTracker(config, folder, knobs)
        case MLflow() as knobs:
            return MLflowTracker(config, folder, knobs)
        case NoTracker():
            return Tracker()
