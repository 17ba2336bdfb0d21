"""The number of steps of a run, known before anything is loaded where possible."""

import math

from opd.config.schema import AnySource, Called, DataMixture, Dataset, Generated, RunConfig
from opd.errors import UserError


def steps(config: RunConfig, num_prompts: int) -> int:
    """Optimizer steps of the run: whole batches of `epochs` passes over the prompts, or `num_steps` if that is fewer.

    Raises:
        UserError: where a batch is larger than the prompt set, `num_steps` more than the epochs give, or the warm-up
            takes all steps.
    """
    if config.batch_size > num_prompts:
        raise UserError(f"batch_size={config.batch_size}: the prompt set has only {num_prompts} prompts")
    available = config.epochs * num_prompts // config.batch_size
    if config.num_steps is not None and config.num_steps > available:
        needed = math.ceil(config.num_steps * config.batch_size / num_prompts)
        raise UserError(
            f"num_steps={config.num_steps}: epochs={config.epochs} over {num_prompts} prompts gives {available} steps; "
            f"set epochs={needed} for that many"
        )
    num_steps = available if config.num_steps is None else config.num_steps
    if config.optim.warmup_steps >= num_steps:
        raise UserError(
            f"optim.warmup_steps={config.optim.warmup_steps}: must be fewer than the run's {num_steps} steps"
        )
    return num_steps


def most_prompts(source: AnySource) -> int | None:
    """The maximum number of prompts of a source; None where only loading it shows that."""
    match source:
        case Generated():
            return source.num
        case Dataset():
            return source.limit
        case Called():
            return None
        case DataMixture():
            each = [most_prompts(one) for one in source.sources.values()]
            known = [most for most in each if most is not None]
            return source.num if source.num is not None else sum(known) if len(known) == len(each) else None
