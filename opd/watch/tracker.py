"""What follows a run elsewhere: `tracker=wandb`, or nothing. A run that loses its tracker goes on without it."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

from opd.check import config as check
from opd.config import identity
from opd.config.schema import RunConfig, Wandb
from opd.errors import UserError
from opd.records.run_dir import RunDir

PATIENCE = 60.0  # seconds that a tracker may take to begin, and to send what is left at the end


@runtime_checkable
class Tracker(Protocol):
    """Takes what metrics.jsonl takes, by the same names."""

    def log(self, line: Mapping[str, Any]) -> None: ...

    def page(self, step: int, html: str) -> None: ...

    def finish(self, failed: bool) -> None: ...


class Nothing:
    """No tracker."""

    def log(self, line: Mapping[str, Any]) -> None: ...

    def page(self, step: int, html: str) -> None: ...

    def finish(self, failed: bool) -> None: ...


class WandbTracker:
    """A run of Weights & Biases, the same one whenever this run goes on.

    Its own counter of steps only grows, so a run that goes on from an earlier checkpoint could not log those steps
    again: `step` is a value like the others, and the axis of all of them.
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
        print(f"{folder.path}: followed by wandb, {where}", flush=True)

    def log(self, line: Mapping[str, Any]) -> None:
        self.run.log(dict(line))

    def page(self, step: int, html: str) -> None:
        self.run.log({"step": step, "rollouts": self.html(html, inject=False)})

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Losable:
    """A tracker whose failure is one warning, after which it is left alone."""

    def __init__(self, tracker: Tracker):
        self.tracker = tracker

    def log(self, line: Mapping[str, Any]) -> None:
        with self._losing():
            self.tracker.log(line)

    def page(self, step: int, html: str) -> None:
        with self._losing():
            self.tracker.page(step, html)

    def finish(self, failed: bool) -> None:
        with self._losing():
            self.tracker.finish(failed)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.tracker = Nothing()
            lost(error)


def lost(error: Exception) -> None:
    """The one sentence about a tracker that is gone, and the end of all that it hooked into imports and the exit."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    print(f"opd: warning: tracker: wandb is lost ({reason}); the run and its records go on without it", file=sys.stderr)
    if wandb := sys.modules.get("wandb"):
        with suppress(Exception, SystemExit):
            wandb.teardown()


def track(config: RunConfig, folder: RunDir) -> Tracker:
    """The tracker that `config` names.

    Raises:
        UserError: where it is not installed, or wants a login or a project that it is not given.
    """
    if not isinstance(config.tracker, Wandb):
        return Nothing()
    try:
        import wandb
        from wandb.errors import AuthenticationError, UsageError
    except ImportError:
        raise UserError(
            "tracker=wandb: wandb is not installed; run `python -m pip install wandb`, or set tracker=none"
        ) from None
    try:
        return Losable(WandbTracker(config, folder, config.tracker))
    except (UsageError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"tracker=wandb: {reason}; log in with `wandb login`, or set tracker.mode=offline or tracker=none"
        ) from error
    except (wandb.Error, OSError, TimeoutError) as error:
        lost(error)
        return Nothing()


def tracked_id(content: Mapping[str, Any]) -> str:
    """Of this run and no other: a hash of its study and run id."""
    return hashlib.sha256(f"{content['study']}/{identity.run_id(content)}".encode()).hexdigest()[:16]
