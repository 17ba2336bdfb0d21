"""Of a multimodal checkpoint vLLM runs the text model, with the learner's weights."""

from pathlib import Path

import pytest

from opd.model.load import load_model
from tests.multimodal import random_model
from tests.unit.rollout.families import PLAIN, prompts
from tests.unit.rollout.test_sampler import reference_logp


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_logp_is_the_learners_own(family: str, tmp_path: Path, start):
    random_model(family, head_dim=32).save_pretrained(tmp_path)  # vLLM's attention on CPUs needs wide heads
    model = load_model(str(tmp_path), revision=None, dtype="float32", key="student.model")
    rollout = start(model).sample(prompts(), PLAIN, key=(1,))
    assert rollout.mask.sum() > 20
    assert (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs().max() < 1e-4
