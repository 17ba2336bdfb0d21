"""Experiment trackers: `tracker=wandb`, or none. A run whose tracker fails goes on without it."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from opd.check import config as check
from opd.config import identity
from opd.config.schema import RunConfig, Wandb
from opd.errors import UserError, first_line
from opd.printable import say, warn
from opd.records.run_dir import RunDir

PATIENCE = 60.0  # seconds that a tracker may take to start, and to send the rest at the end


class Tracker:
    """Receives the lines of metrics.jsonl and the pages of rollouts; this one ignores them."""

    def log(self, line: Mapping[str, Any]) -> None: ...

    def page(self, step: int, html: str) -> None: ...

    def finish(self, failed: bool) -> None: ...


class WandbTracker(Tracker):
    """A run of Weights & Biases, the same one whenever this run is resumed.

    wandb's own step counter only grows, so a resumed run could not log steps again: `step` is logged as a value, and is
    the x axis of all others.
    """

    def __init__(self, config: RunConfig, folder: RunDir, knobs: Wandb):
        import wandb

        content = check.as_dict(config)
        self.html = wandb.Html
        self.run = wandb.init(
            project=knobs.project,
            entity=knobs.entity,
            tags=knobs.tags,
            mode=knobs.mode,
            id=tracked_id(content),
            name=identity.run_id(content),
            group=config.study,
            config=content,
            dir=str(folder.path),
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                init_timeout=PATIENCE,
                login_timeout=PATIENCE,
                finish_timeout=PATIENCE,
                finish_timeout_raises=True,
            ),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        where = self.run.url if knobs.mode == "online" else f"{knobs.mode}, in {folder.path / 'wandb'}"
        say(f"{folder.path}: tracked by wandb, {where}")

    def log(self, line: Mapping[str, Any]) -> None:
        self.run.log(dict(line))

    def page(self, step: int, html: str) -> None:
        self.run.log({"step": step, "rollouts": self.html(html, inject=False)})

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class FaultTolerant(Tracker):
    """A tracker whose first failure is a warning, after which it is not used any more."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

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
            self.tracker = Tracker()
            _abandon(error)


def _abandon(error: Exception) -> None:
    """Warns that wandb failed, and tears down its hooks into imports and the exit."""
    reason = first_line(error).rstrip(".")
    warn(f"tracker: wandb is lost ({reason}); the run and its records go on without it")
    if wandb := sys.modules.get("wandb"):
        with suppress(Exception, SystemExit):
            wandb.teardown()


def track(config: RunConfig, folder: RunDir) -> Tracker:
    """Starts the tracker that `config` names.

    Raises:
        UserError: where it is not installed, or needs a login or a project that it is not given.
    """
    if not isinstance(config.tracker, Wandb):
        return Tracker()
    try:
        import wandb
        from wandb.errors import AuthenticationError, UsageError
    except ImportError:
        raise UserError(
            "tracker=wandb: wandb is not installed; run `python -m pip install wandb`, or set tracker=none"
        ) from None
    try:
        return FaultTolerant(WandbTracker(config, folder, config.tracker))
    except (UsageError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"tracker=wandb: {reason}; log in with `wandb login`, or set tracker.mode=offline or tracker=none"
        ) from error
    except (wandb.Error, OSError, TimeoutError) as error:
        _abandon(error)
        return Tracker()


def tracked_id(content: Mapping[str, Any]) -> str:
    """wandb's id of this run: a hash of its study and run id."""
    return hashlib.sha256(f"{content['study']}/{identity.run_id(content)}".encode()).hexdigest()[:16]
