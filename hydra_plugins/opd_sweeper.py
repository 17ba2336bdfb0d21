"""Hydra's way to a sweep: `python -m opd.train -m +sweep=NAME [hydra/launcher=…]` launches the arms of `sweeps.grid`.

Hydra looks for plugins in this namespace package and nowhere else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from opd.cli import key_of
from sweeps.compose import composer
from sweeps.plan import plan


class ArmsSweeper(Sweeper):
    """Launches every arm with every seed, in one batch. It blocks until all have ended; `sweeps.submit` does not."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Checks every run, then launches; raises what the first failed run raised, after all have ended."""
        assert self.config is not None and self.launcher is not None
        overrides = [text for text in arguments if not key_of(text).startswith("hydra")]
        with composer() as compose:
            planned = plan(compose, overrides, ranks=1)
        planned.refuse_bad()
        for note in planned.notes:
            print(f"opd: {note}", flush=True)
        batch = [[*arguments, *run.arm, f"seed={run.config['seed']}"] for run in planned.runs]
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        ended: Sequence[Any] = self.launcher.launch(batch, initial_job_idx=0)
        for run in ended:
            _ = run.return_value
        return ended
