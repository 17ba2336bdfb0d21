"""Rewards: graded, less their prompt's mean where that is asked for, and the weights of prompts."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from opd import cli
from opd.check import config as check
from opd.config.schema import CONF, Shaping
from opd.data.batch import Prompt, Rollout
from opd.recipes.tokenizer import build_tokenizer
from opd.step.benchmarks import grade_rollout
from opd.step.stages import Rewards
from tests.unit.small import rollout_of

PROMPTS = [Prompt(str(answer), "", str(answer), "addition", (11,)) for answer in (1, 2, 3)]
TOKENIZER = build_tokenizer()


@cache
def shaping() -> Shaping:
    cli.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = ["student.model=a", "teacher.models=[b]"]
        return check.prepare(cli.resolved(compose("config", overrides=plain))).shaping


def answers() -> Rollout:
    """Two responses a prompt, one of them empty. Of the first prompt both are right, of the second one."""
    texts = ["#### 1", "#### 1", "#### 2", "#### 7", "#### 9", ""]
    rollout = rollout_of([[11]] * 6, [TOKENIZER.encode(text) for text in texts])
    return replace(rollout, group=torch.tensor([0, 0, 1, 1, 2, 2]))


def rewarded(needed: bool = True, **knobs: Any) -> tuple[torch.Tensor | None, torch.Tensor, dict[str, float]]:
    responses = answers()
    rewards = Rewards(needed, replace(shaping(), **knobs))
    return rewards(responses, lambda: grade_rollout(responses, PROMPTS, TOKENIZER, timeout=5.0))


@pytest.mark.parametrize(("baseline", "expected"), [("none", [1, 1, 1, 0, 0, 0]), ("group", [0, 0, 0.5, -0.5, 0, 0])])
def test_reward_baseline(baseline: str, expected: list[float]):
    reward, weight, metrics = rewarded(reward_baseline=baseline)
    assert reward is not None and reward.tolist() == expected
    assert weight.tolist() == [[1.0]] * 6 and metrics == {"reward/mean": 0.5, "reward/prompt_weight": 1.0}


def test_pass_rate_weights():
    reward, weight, metrics = rewarded(pass_rate_power=2.0)
    assert reward is not None and weight[:, 0].tolist() == [0, 0, 1, 1, 0, 0]
    assert metrics == pytest.approx({"reward/mean": 0.5, "reward/prompt_weight": 1 / 3})


def test_no_grading_without_rewards():
    reward, weight, metrics = rewarded(needed=False)
    assert reward is None and weight.tolist() == [[1.0]] * 6 and metrics == {}
