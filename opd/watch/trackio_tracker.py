"""`tracker=trackio`: trackio's store on this machine, which `trackio sync` publishes."""

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from opd.check import config as check
from opd.config import identity
from opd.config.schema import RunConfig, Trackio
from opd.errors import UserError
from opd.printable import say
from opd.records.run_dir import RunDir
from opd.watch.tracked import Tracker, differs, numbers, tracked_id

_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # a run there cannot be taken back to a checkpoint


class TrackioTracker(Tracker):
    """A run of trackio's. One that goes on is written anew there, up to where it goes on."""

    def __init__(self, config: RunConfig, folder: RunDir, knobs: Trackio):
        import trackio

        for variable in _ELSEWHERE:
            if os.environ.get(variable):
                raise UserError(
                    f"tracker=trackio: {variable} is set, but runs are kept in trackio's store on this machine; unset "
                    f"it, and publish them with `trackio sync --project {knobs.project}`"
                )
        self.trackio, self.project, self.study = trackio, knobs.project, config.study
        content = check.as_dict(config)
        self.name = identity.run_id(content)
        self.config = {**content, "differs": differs(config), "tracked_id": tracked_id(content)}
        self.run: Any = None
        say(f"{folder.path}: tracked by trackio; trackio show --project {knobs.project} shows it")

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with suppress(ValueError):  # no such project
            for run in self.trackio.Api().runs(self.project):
                if (run.config or {}).get("tracked_id") == self.config["tracked_id"]:
                    run.delete()
        with redirect_stdout(io.StringIO()):  # where it advertises its commands
            self.run = self.trackio.init(
                project=self.project,
                name=self.name,
                group=self.study,
                config=self.config,
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        for line in lines:
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        # `time` is trackio's own word.
        told = {name: value for name, value in numbers(line).items() if name != "time"}
        self.run.log(told, step=line["step"])

    def finish(self, failed: bool) -> None:
        if self.run is not None:
            with redirect_stdout(io.StringIO()):
                self.trackio.finish()
