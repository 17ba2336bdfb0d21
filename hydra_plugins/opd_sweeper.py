"""Sweeps through Hydra: `python -m opd.train -m +sweep=NAME [hydra/launcher=…]` launches the arms of `sweeps.grid`.

Hydra looks for plugins only in this namespace package.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from opd.config.words import key_of
from sweeps.compose import composer
from sweeps.plan import plan


class LaunchingSweeper(Sweeper):
    """A sweeper that hands its runs to Hydra's launcher."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config, self.num_launched = hydra_context, config, 0
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(self, batch: Sequence[Sequence[str]]) -> Sequence[Any]:
        """Run a list of overrides each, and wait for all of them."""
        assert self.config is not None and self.launcher is not None
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        first, self.num_launched = self.num_launched, self.num_launched + len(batch)
        return self.launcher.launch(batch, initial_job_idx=first)


class ArmsSweeper(LaunchingSweeper):
    """Launches every arm with every seed in one batch, and blocks until all have ended; `sweeps.submit` does not."""

    def sweep(self, arguments: list[str]) -> Any:
        """Check every run, then launch them; raises what the first failed run raised, after all have ended."""
        with composer() as compose:
            planned = plan(compose, [text for text in arguments if not key_of(text).startswith("hydra")], ranks=1)
        planned.refuse_bad()
        for note in planned.notes:
            print(f"opd: {note}", flush=True)
        ended = self.launch([[*arguments, *run.arm, f"seed={run.config['seed']}"] for run in planned.runs])
        for run in ended:
            _ = run.return_value
        return ended
