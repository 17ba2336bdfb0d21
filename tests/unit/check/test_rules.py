"""Rules of what may not start, at their edges: the last config that is refused and the first that is not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from opd.check.objective_rules import too_few_to_rank
from opd.check.run_rules import endless_stream
from opd.check.signal_rules import clip_and_updates
from opd.config.schema import Dataset, RunConfig
from tests.integration.conftest import composed


@pytest.fixture(scope="module")
def start() -> RunConfig:
    return composed(["+experiment=kl_0_30"])


@pytest.mark.parametrize(
    ("low", "high", "tokens", "refused"),
    [
        # The ranks of n tokens are at 0, 100 / n, …: the first above 80 is that of the fifth of six.
        (81, 90, 5, True),
        (81, 90, 6, False),
        (0, 1, 1, False),
        (50, 100, 1, True),
        (50, 100, 2, False),
        (99, 100, 99, True),
        (99, 100, 100, False),
    ],
)
def test_refuses_empty_percentile_range(start: RunConfig, low: int, high: int, tokens: int, refused: bool):
    narrow = {**start.filter, "p_min": low, "p_max": high, "scope": "sequence", "prefix_length": None}
    config = replace(start, filter=narrow, max_response_length=tokens)
    assert bool(too_few_to_rank.refusal(config)) is refused
    ranked = any(
        low * tokens <= 100 * rank < high * tokens for tokens in range(1, tokens + 1) for rank in range(tokens)
    )
    assert ranked is not refused


@pytest.mark.parametrize(
    ("updates", "low", "high", "refused"),
    [
        (1, None, None, False),
        (1, 0.2, None, True),
        (1, None, 0.2, True),
        (2, None, None, True),
        (2, 0.2, None, True),
        (2, None, 0.2, True),
        (2, 0.2, 0.2, False),
    ],
)
def test_clip_bounds_by_number_of_updates(start: RunConfig, updates: int, low: Any, high: Any, refused: bool):
    clip = replace(start.clip, low=low, high=high)
    config = replace(start, clip=clip, mini_batch_size=start.batch_size // updates)
    assert bool(clip_and_updates.refusal(config)) is refused


@pytest.mark.parametrize("place", ["prompts", "benchmark"])
def test_refuses_unlimited_stream(start: RunConfig, place: str):
    stream = Dataset(
        kind="dataset", hub="a/b", config=None, split="train", revision=None, streaming=True, file=None,
        problem=None, problem_field="problem", answer_field="answer", id_field=None, where={},
        domain="math", limit=None, grader="mathematics",
    )  # fmt: skip
    put: dict[str, Callable[[Dataset], RunConfig]] = {
        "prompts": lambda source: replace(start, prompts=replace(start.prompts, source=source)),
        "benchmark": lambda source: replace(start, evaluate=replace(start.evaluate, sources={"b": source})),
    }
    assert "set the limit of " in (endless_stream.refusal(put[place](stream)) or "")
    assert endless_stream.refusal(put[place](replace(stream, limit=9))) is None
    assert endless_stream.refusal(put[place](replace(stream, streaming=False))) is None
