"""Settings under which a run fits into memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from opd.config.schema import RunConfig
from opd.model.memory import Machine, MemoryEstimate, Models, Phase, estimate_memory


def remedies(config: RunConfig, models: Models, machine: Machine, longest_prompt: int) -> list[str]:
    """A few settings that do not change the method and under which the run fits; all that help, if it never fits."""

    def under(names: Sequence[str]) -> MemoryEstimate:
        changed = config
        for name in names:
            changed = options[name](changed)
        return estimate_memory(changed, models, machine, longest_prompt)

    options, chosen = _options(config, machine, longest_prompt), list[str]()
    now = under(chosen)
    while not now.fits:
        worst: Phase = now.worst
        tried = {name: under([*chosen, name]) for name in options if name not in chosen}
        best = min(tried, key=lambda name, phase=worst: tried[name].total(phase), default=None)
        if best is None or tried[best].total(worst) >= now.total(worst):
            return chosen
        chosen, now = [*chosen, best], tried[best]
    for name in [*chosen]:  # a later setting may have made an earlier one unnecessary
        rest = [other for other in chosen if other != name]
        if under(rest).fits:
            chosen = rest
    return chosen


def _options(config: RunConfig, machine: Machine, longest_prompt: int) -> dict[str, Callable[[RunConfig], RunConfig]]:
    longest = longest_prompt + config.max_response_length

    def of(group: str, **changes: Any) -> Callable[[RunConfig], RunConfig]:
        return lambda config: replace(config, **{group: replace(getattr(config, group), **changes)})

    def rollout(**changes: Any) -> Callable[[RunConfig], RunConfig]:
        return lambda config: replace(config, rollout={**config.rollout, **changes})

    options = {
        f"memory.micro_batch_tokens={longest}": (
            config.memory.micro_batch_tokens > longest,
            of("memory", micro_batch_tokens=longest),
        ),
        "memory.logit_chunk=512": (config.memory.logit_chunk > 512, of("memory", logit_chunk=512)),
        "compute.activation_checkpointing=true": (
            not config.compute.activation_checkpointing,
            of("compute", activation_checkpointing=True),
        ),
        "compute.dtype=bfloat16": (config.compute.dtype == "float32", of("compute", dtype="bfloat16")),
        "teacher.dtype=bfloat16": (config.teacher.dtype == "float32", of("teacher", dtype="bfloat16")),
        "rollout.dtype=bfloat16": (config.rollout.get("dtype") != "bfloat16", rollout(dtype="bfloat16")),
        f"rollout.max_batch_tokens={2 * longest}": (
            config.rollout.get("max_batch_tokens", 0) > 2 * longest,
            rollout(max_batch_tokens=2 * longest),
        ),
        "compute.offload=true": (machine.kind == "cuda" and not config.compute.offload, of("compute", offload=True)),
    }
    return {name: changed for name, (possible, changed) in options.items() if possible}
