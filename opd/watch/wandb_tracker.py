"""`tracker=wandb`: Weights & Biases."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from opd.check import config as check
from opd.config import identity
from opd.config.schema import RunConfig, Wandb
from opd.errors import UserError
from opd.printable import say
from opd.records.run_dir import RunDir
from opd.watch.tracked import Tracker, differs, tracked_id

PATIENCE = 60.0  # seconds that it may take to start, and to send the rest at the end


class WandbTracker(Tracker):
    """A run of Weights & Biases, the same one whenever this run is resumed.

    wandb's own step counter only grows, so a resumed run could not log steps again: `step` is logged as a value, and is
    the x axis of all others. Steps that are repeated have the same values.
    """

    def __init__(self, config: RunConfig, folder: RunDir, knobs: Wandb):
        import wandb
        from wandb.errors import AuthenticationError, UsageError

        content = check.as_dict(config)
        self.html = wandb.Html
        try:
            self.run = wandb.init(
                project=knobs.project,
                entity=knobs.entity,
                tags=knobs.tags,
                mode=knobs.mode,
                id=tracked_id(content),
                name=identity.run_id(content),
                group=config.study,
                config={**content, "differs": differs(config)},
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
        except (UsageError, AuthenticationError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"tracker=wandb: {reason}; log in with `wandb login`, or set tracker.mode=offline or tracker=none"
            ) from error
        except Exception:
            self.abandon()
            raise
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

    def abandon(self) -> None:
        """Tears down its hooks into imports and the exit."""
        if wandb := sys.modules.get("wandb"):
            with suppress(Exception, SystemExit):
                wandb.teardown()
