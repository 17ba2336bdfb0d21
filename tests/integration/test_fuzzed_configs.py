"""Configs of many random choices at once: each makes a step that is a number, or is refused in one clear sentence.

`OPD_CONFIGS=500 python -m pytest tests/integration/test_fuzzed_configs.py` tries as many; 20 are tried always.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.pairs import CHOICES, REFUSED, Settings, World, is_clear, matches, opened, settings

NUMBER = int(os.environ.get("OPD_CONFIGS", "20"))
# What is no method: lengths, batches, precisions, schedules. (Not what changes the modules, which `World` keeps.)
OTHERS = [
    *("batch_size=2", "batch_size=8", "samples_per_prompt=1", "samples_per_prompt=4", "max_response_length=3"),
    *("memory.micro_batch_tokens=1", "memory.logit_chunk=2", "rollout.max_batch_tokens=64"),
    *("rollout.temperature=0.5", "rollout.top_p=0.8", "rollout.top_k=5", "rollout.dtype=int4", "rollout.dtype=float32"),
    *(
        "teacher.temperature=2.0",
        "teacher.dtype=bfloat16",
        "optim.lr=0.1",
        "optim.max_grad_norm=0.01",
    ),
    *("optim.schedule=linear", "signal.divergence=[0.1,1.0]", "signal.reward=0.5", "gamma=0.9", "prompts.prefix='1+'"),
    *("filter.exclude_special=true", "whitening=batch", "evaluate.temperature=0.0", "checkpoint.every=1", "seed=7"),
]


@pytest.fixture(scope="module")
def world(models: Path, small_run: list[str]) -> Iterator[World]:
    with opened(small_run, models) as world:
        yield world


def drawn(seed: int) -> tuple[list[str], Settings]:
    """Two to eight choices of different keys; three in four configs are none of those that pairs are refused for."""
    rng = np.random.default_rng([seed, 26])
    avoids = rng.random() < 0.75
    while True:
        chosen: dict[str, str] = {}
        for choice in rng.permutation([*CHOICES, *OTHERS])[: rng.integers(2, 9)]:
            chosen.setdefault(str(choice).partition("=")[0], str(choice))
        given = settings(*chosen.values())
        if not (avoids and any(matches(given, pattern) for pattern, _ in REFUSED)):
            return list(chosen.values()), given


def outcome(world: World, seed: int) -> str:
    """`runs`, `refused`, or what is wrong."""
    choices, _ = drawn(seed)
    _, result = world.step(*choices)
    if isinstance(result, str):
        return "refused" if is_clear(result) else f"{choices}: is refused unclearly: {result}"
    return "runs" if all(map(math.isfinite, result)) else f"{choices}: has the loss and gradient {result}"


def test_every_config_makes_a_step_or_is_refused_clearly(world: World):
    found = [outcome(world, seed) for seed in range(NUMBER)]
    assert [each for each in found if each not in ("runs", "refused")] == []
    print(f"{found.count('runs')} of {NUMBER} run")
    assert found.count("runs") >= NUMBER / 2, found
