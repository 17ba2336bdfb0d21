"""Hydra's way to a sweep: `python -m opd.train -m +sweep=NAME [hydra/launcher=…]` launches the arms of `sweeps.grid`.

Hydra looks for plugins in this namespace package and nowhere else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sweeps import grid


class ArmsSweeper(Sweeper):
    """Launches every arm with every seed, in one batch. It blocks until all have ended; `sweeps.submit` does not."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launches; raises what the first failed run raised, after all have ended."""
        assert self.config is not None and self.launcher is not None
        sweep = grid.read(OmegaConf.to_container(self.config.sweep) if "sweep" in self.config else None)
        arms = grid.arms(sweep)
        rest = [text for text in arguments if grid.key_of(text).split(".")[0] not in ("sweep", "hydra")]
        grid.refuse_clashes(rest, arms)
        batch = [[*arguments, *arm, f"seed={seed}"] for arm in arms for seed in sweep.seeds]
        self.validate_batch_is_legal(batch)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        ended: Sequence[Any] = self.launcher.launch(batch, initial_job_idx=0)
        for run in ended:
            _ = run.return_value
        return ended
