"""Search by Optuna: `python -m opd.train -m hydra/sweeper=optuna 'optim.lr=tag(log, interval(1e-6, 1e-3))' …`.

Axes are overrides with several values, in Hydra's syntax: `interval(a, b)`, logarithmic where tagged `log`, in whole
numbers as `int(interval(a, b))`; `range(a, b, step)`; `choice(a, b)` or `a,b`.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.utils import JobStatus

from hydra_plugins.opd_sweeper import LaunchingSweeper
from opd.check import config as check
from opd.config import identity
from opd.config.words import key_of
from opd.errors import UserError
from opd.records.run_dir import RunDir
from sweeps.compose import composer, parse_overrides

_METRIC = re.compile(r"((?:mean|best|maj)@[1-9][0-9]*) (max|last)")


class SearchSweeper(LaunchingSweeper):
    """Maximises `metric`, its mean over `seeds`, in the records of the runs.

    The next trial depends only on the records so far and `sampler_seed`, and finished runs are not run again: the same
    command resumes an interrupted search, and a larger `trials` continues it.
    """

    def __init__(
        self, metric: str, seeds: list[int], trials: int, parallel: int, startup_trials: int, sampler_seed: int
    ) -> None:
        self.metric, self.seeds, self.trials, self.parallel = metric, list(seeds), trials, parallel
        self.startup_trials, self.sampler_seed = startup_trials, sampler_seed

    def sweep(self, arguments: list[str]) -> Any:
        """Run all trials; print each and the best.

        Raises:
            UserError: without Optuna or an axis, or for a trial that may not start.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise UserError("hydra/sweeper=optuna: Optuna is not installed; make setup EXTRAS=optuna") from None
        self._check()
        fixed, axes = _axes(arguments)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=self.sampler_seed, n_startup_trials=self.startup_trials, constant_liar=self.parallel > 1
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        ended = []
        while (asked := len(study.trials)) < self.trials:
            batch = [study.ask(axes) for _ in range(min(self.parallel, self.trials - asked))]
            arms = [[f"{key}={value}" for key, value in trial.params.items()] for trial in batch]
            folders = self._folders([text for text in fixed if not key_of(text).startswith("hydra")], arms)
            ended = self.launch([[*fixed, *arm, f"seed={seed}"] for arm in arms for seed in self.seeds])
            for trial, arm, runs in zip(batch, arms, folders, strict=True):
                value = fmean(score(folder, self.metric) for folder in runs)  # NaN where a seed has none
                failed = math.isnan(value)
                study.tell(trial, None if failed else value, state=optuna.trial.TrialState.FAIL if failed else None)
                print(f"trial {trial.number + 1}/{self.trials}: {' '.join(arm)}: {value:.4f}", flush=True)
        if not [trial for trial in study.trials if trial.value is not None]:
            for run in ended:
                if run.status is JobStatus.FAILED:
                    _ = run.return_value  # raises what the run raised
            raise UserError(
                f"metric={self.metric}: is in no run's records; evaluate.every and evaluate.k decide what is evaluated"
            )
        best = study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(
            f"best: trial {best.number + 1}: {values}: {self.metric} {best.value:.4f}, seeds {self.seeds}", flush=True
        )
        return best.value

    def _check(self) -> None:
        parse(self.metric)
        for key in ("trials", "parallel", "startup_trials"):
            if not isinstance(number := getattr(self, key), int) or number < 1:
                raise UserError(f"hydra.sweeper.{key}={number}: should be a whole number, 1 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"hydra.sweeper.seeds={self.seeds}: should be one or more different seeds")

    def _folders(self, fixed: list[str], arms: Sequence[list[str]]) -> list[list[Path]]:
        """The directories of each arm's runs; composing their configs checks them before any is launched."""

        def folder(compose: Any, overrides: list[str]) -> Path:
            config = compose.config(overrides)
            return Path(config.paths.outputs) / config.study / identity.run_id(check.as_dict(config))

        with composer() as compose:
            return [[folder(compose, [*fixed, *arm, f"seed={seed}"]) for seed in self.seeds] for arm in arms]


def _axes(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides with one value, and an Optuna distribution for each of the others."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    fixed, axes = [], {}
    for text, override in zip(arguments, parse_overrides(arguments), strict=True):
        key = override.get_key_element()
        if override.key_or_group == "seed":
            raise UserError(f"{text}: axes clash: the seeds of a trial are hydra.sweeper.seeds=[…]")
        if override.key_or_group == "sweep":
            raise UserError(f"{text}: is a grid, which a search cannot use; leave out it or hydra/sweeper=optuna")
        if not override.is_sweep_override():
            fixed.append(text)
        elif override.is_interval_sweep():
            axis = override.value()
            whole = isinstance(axis.start, int) and isinstance(axis.end, int)
            kind = IntDistribution if whole else FloatDistribution
            try:
                axes[key] = kind(axis.start, axis.end, log="log" in axis.tags)
            except ValueError as error:
                raise UserError(f"{text}: is not a valid interval ({error})") from None
        else:
            axes[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
    if not axes:
        raise UserError("hydra/sweeper=optuna: there is no axis; give one, as 'optim.lr=interval(1e-6, 1e-3)'")
    return fixed, axes


def parse(metric: str) -> tuple[str, str]:
    """`mean@8 last` → its name in the records, `evaluate/mean@8`, and which of a run's evaluations counts.

    Raises:
        UserError: for anything else.
    """
    match = _METRIC.fullmatch(metric)
    if match is None:
        raise UserError(
            f"metric={metric}: is not a metric; give mean@K, best@K or maj@K, then max or last, as 'mean@8 last'"
        )
    return f"evaluate/{match[1]}", match[2]


def score(folder: Path, metric: str) -> float:
    """Return a run's largest (`max`) or last (`last`) evaluation; NaN where it has none.

    Raises:
        RecordError: for metrics that cannot be read.
    """
    key, which = parse(metric)
    values = [line[key] for line in RunDir(folder).metrics() if line.get(key) is not None]
    return math.nan if not values else max(values) if which == "max" else values[-1]
