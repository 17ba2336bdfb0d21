"""The supervised stage: `python -m opd.sft` trains the models of `recipes` that do not exist yet.

    python -m opd.sft                                    all recipes of the scale
    python -m opd.sft recipes.student.steps=200          with another value

Each is trained in a process of its own on one thread, longest first, as many at once as there are cores.
"""

from pathlib import Path

from opd import cli
from opd.errors import UserError
from opd.recipes.make import ensure_models


def _command() -> None:
    import hydra
    from omegaconf import DictConfig

    from opd.config.parsing import parse

    @hydra.main(version_base="1.3", config_path=str(cli.CONF), config_name="config")
    @cli.job
    def run(config: DictConfig) -> None:
        whole = parse(cli.resolved(config))
        if not whole.recipes:
            raise UserError(f"scale={whole.scale.name} has no recipes; scale=tiny has, or add one with +recipes.NAME=…")
        for path in ensure_models(whole.recipes, Path(whole.paths.models)).values():
            print(path)

    run()


if __name__ == "__main__":
    cli.main(_command)
