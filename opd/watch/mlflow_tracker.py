"""`tracker=mlflow`: a run of MLflow's, in the store or on the server that MLFLOW_TRACKING_URI names.

No config names it, for MLflow sends there what passwords the environment has.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from opd.check import config as check
from opd.check.credentials import without_credentials
from opd.config import identity
from opd.config.flat import flat
from opd.config.schema import MLflow, RunConfig
from opd.printable import say
from opd.records.run_dir import RunDir
from opd.watch.tracked import Tracker, differs, numbers, tracked_id

_ID = "opd.tracked_id"
_PARAMS, _METRICS = 100, 1000  # at most in one request, by MLflow's own limits
# How long a run waits for a server that has gone, about a minute, instead of many.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}


class MLflowTracker(Tracker):
    """A run in MLflow's experiment `knobs.experiment`.

    MLflow takes no metric back: a run that goes on from before the last step that it was told of is a new run there,
    with the steps up to where it goes on, and the old one is deleted, from where MLflow can restore it.
    """

    def __init__(self, config: RunConfig, folder: RunDir, knobs: MLflow):
        for name, value in {**_PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric, self.param = Metric, Param
        self.client = mlflow.MlflowClient()
        self.content = check.as_dict(config)
        self.differs = differs(config)
        self.experiment = self._experiment(knobs.experiment)
        self.run = ""
        where = without_credentials(mlflow.get_tracking_uri())
        say(f"{folder.path}: tracked by mlflow, experiment {knobs.experiment} of {where}")

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name)
        except MlflowException:  # another run of the sweep may have made it meanwhile
            if found := self.client.get_experiment_by_name(name):
                return found.experiment_id
            raise

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        mine = f"tags.`{_ID}` = '{tracked_id(self.content)}'"
        steps = [line["step"] for line in lines]
        for run in self.client.search_runs([self.experiment], mine):
            told = [metric.step for metric in self.client.get_metric_history(run.info.run_id, "time")]
            if not self.run and sorted(told) == steps:
                self.run = run.info.run_id
                self.client.update_run(self.run, status="RUNNING")
            else:
                self.client.delete_run(run.info.run_id)
        if not self.run:
            self.run = self._new_run()
            for part in _parts((metric for line in lines for metric in self._metrics(line)), _METRICS):
                self.client.log_batch(self.run, metrics=part)

    def _new_run(self) -> str:
        tags = {_ID: tracked_id(self.content), "opd.study": self.content["study"], "opd.differs": self.differs}
        run = self.client.create_run(self.experiment, run_name=identity.run_id(self.content), tags=tags).info.run_id
        params = (
            self.param(_allowed(key.replace("%2E", ".")), str(value))
            for key, value in flat(self.content).items()
            if value != {}
        )
        for part in _parts(params, _PARAMS):
            self.client.log_batch(run, params=part)
        return run

    def log(self, line: Mapping[str, Any]) -> None:
        self.client.log_batch(self.run, metrics=self._metrics(line))

    def _metrics(self, line: Mapping[str, Any]) -> list[Any]:
        now = int(time.time() * 1000)
        return [self.metric(_allowed(name), value, now, line["step"]) for name, value in numbers(line).items()]

    def finish(self, failed: bool) -> None:
        if self.run:
            self.client.set_terminated(self.run, status="FAILED" if failed else "FINISHED")


def _allowed(name: str) -> str:
    """A name with the signs that MLflow allows, and its own word for `@`: mean@8 is mean_at_8."""
    return re.sub(r"[^\w./ :-]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def _parts(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while part := list(islice(items, size)):
        yield part
