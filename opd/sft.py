"""The supervised stage: `python -m opd.sft` trains those models of `recipes` that do not exist yet.

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
    def run(composed: DictConfig) -> None:
        config = parse(cli.resolved(composed))
        if not config.recipes:
            raise UserError(
                f"scale={config.scale.name} has no recipes; scale=tiny has, or add one with +recipes.NAME=…"
            )
        for path in ensure_models(config.recipes, Path(config.paths.models)).values():
            print(path)

    run()


if __name__ == "__main__":
    cli.main(_command, about=__doc__, groups=("scale",))
