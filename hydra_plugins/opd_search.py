"""Search by Optuna: `python -m opd.train -m hydra/sweeper=optuna 'optim.lr=tag(log, interval(1e-6, 1e-3))' …`.

Axes are overrides with several values, in Hydra's syntax: `interval(a, b)`, logarithmic where tagged `log`, in whole
numbers as `int(interval(a, b))`; `range(a, b, step)`; `choice(a, b)` or `a,b`.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from opd.check import config as check
from opd.cli import key_of
from opd.config import identity
from opd.errors import UserError
from sweeps.compose import composer, parse
from sweeps.score import parse as parse_metric
from sweeps.score import score


class SearchSweeper(Sweeper):
    """Maximises `metric`, the mean over `seeds`, as the records of the runs give it.

    What is tried next follows from the records so far and `sampler_seed` alone, and a finished run is not run again:
    the same command goes on with a search that was interrupted, and a larger `trials` continues one.
    """

    def __init__(
        self, metric: str, seeds: list[int], trials: int, parallel: int, startup_trials: int, sampler_seed: int
    ) -> None:
        self.metric, self.seeds, self.trials, self.parallel = metric, list(seeds), trials, parallel
        self.startup_trials, self.sampler_seed = startup_trials, sampler_seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all trials; prints each and the best.

        Raises:
            UserError: without Optuna or an axis, or for a trial that may not start.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise UserError("hydra/sweeper=optuna: Optuna is not installed; make setup EXTRAS=optuna") from None
        self._refuse()
        assert self.config is not None and self.launcher is not None
        fixed, axes = _axes(arguments)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=self.sampler_seed, n_startup_trials=self.startup_trials, constant_liar=self.parallel > 1
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        jobs, ended = 0, []
        while (asked := len(study.trials)) < self.trials:
            batch = [study.ask(axes) for _ in range(min(self.parallel, self.trials - asked))]
            arms = [[f"{key}={value}" for key, value in trial.params.items()] for trial in batch]
            folders = self._folders([text for text in fixed if not key_of(text).startswith("hydra")], arms)
            each = [[*fixed, *arm, f"seed={seed}"] for arm in arms for seed in self.seeds]
            ended = self.launcher.launch(each, initial_job_idx=jobs)
            jobs += len(each)
            for trial, arm, runs in zip(batch, arms, folders, strict=True):
                value = statistics.fmean(score(folder, self.metric) for folder in runs)
                failed = math.isnan(value)
                study.tell(trial, None if failed else value, state=optuna.trial.TrialState.FAIL if failed else None)
                print(f"trial {trial.number + 1}/{self.trials}: {' '.join(arm)}: {value:.4f}", flush=True)
        if not [trial for trial in study.trials if trial.value is not None]:
            _raise_first(ended)
            raise UserError(
                f"metric={self.metric}: no run's records have it; evaluate.every and evaluate.k say what is"
            )
        best = study.best_trial
        shown = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best: trial {best.number + 1}: {shown}: {self.metric} {best.value:.4f}, seeds {self.seeds}", flush=True)
        return best.value

    def _refuse(self) -> None:
        parse_metric(self.metric)
        for key in ("trials", "parallel", "startup_trials"):
            if not isinstance(number := getattr(self, key), int) or number < 1:
                raise UserError(f"hydra.sweeper.{key}={number}: should be a whole number, 1 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"hydra.sweeper.seeds={self.seeds}: should be one seed or several, none of them twice")

    def _folders(self, fixed: list[str], arms: Sequence[list[str]]) -> list[list[Path]]:
        """Where the runs of each arm are kept; composing them checks them before any is launched."""
        found = []
        with composer() as compose:
            for arm in arms:
                configs = [compose.config([*fixed, *arm, f"seed={seed}"]) for seed in self.seeds]
                found.append(
                    [
                        Path(config.paths.outputs) / config.study / identity.run_id(check.as_dict(config))
                        for config in configs
                    ]
                )
        return found


def _axes(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides with one value, and an Optuna distribution for each of the others."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    fixed, axes = [], {}
    for text, override in zip(arguments, parse(arguments), strict=True):
        key = override.get_key_element()
        if override.key_or_group == "seed":
            raise UserError(f"{text}: axes clash: the seeds of a trial are hydra.sweeper.seeds=[…]")
        if override.key_or_group == "sweep":
            raise UserError(f"{text}: is a grid, which needs no search; leave it out, or hydra/sweeper=optuna")
        if not override.is_sweep_override():
            fixed.append(text)
        elif override.is_interval_sweep():
            axis = override.value()
            whole = isinstance(axis.start, int) and isinstance(axis.end, int)
            kind = IntDistribution if whole else FloatDistribution
            try:
                axes[key] = kind(axis.start, axis.end, log="log" in axis.tags)
            except ValueError as error:
                raise UserError(f"{text}: is no interval ({error})") from None
        else:
            axes[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
    if not axes:
        raise UserError(
            "hydra/sweeper=optuna: there is no axis; give one, as 'optim.lr=tag(log, interval(1e-6, 1e-3))'"
        )
    return fixed, axes


def _raise_first(ended: Sequence[Any]) -> None:
    for run in ended:
        if run.status is JobStatus.FAILED:
            _ = run.return_value
