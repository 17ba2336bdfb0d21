"""Families of every kind: what our learner and sampler make of a model is what transformers alone makes of it.

`python -m docs.families` tries all families, in whole runs.
"""

from pathlib import Path

import pytest
import torch
from transformers import logging

from docs.families.small import LARGEST_LOGIT, model_of
from docs.families.trial import HOT, TOLERANCE, plain_logp
from opd.data.batch import Prompt, Sampling
from opd.model.load import load_model
from opd.model.policy import Scorer
from opd.rollout.sampler import TransformersSampler
from tests.unit.small import ALONE, root

TOKENS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
KINDS = {
    "qwen3": "plain",
    "mistral": "sliding window",
    "gemma2": "soft caps of attention and logits",
    "cohere2": "scaled, its head the embedding",
    "granite": "scaled logits and attention",
    "phi": "a head with a bias",
    "bloom": "no positions but in attention",
    "gpt_oss": "attention with sinks, a mixture of experts",
    "deepseek_v3": "latent attention",
    "llama4_text": "attention in chunks",
    "qwen3_next": "a linear state in some layers",
    "falcon_h1": "a state beside attention, a scaled head",
    "mamba2": "a state alone",
    "gemma3": "multimodal",
}


@pytest.fixture(autouse=True)
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


@pytest.mark.parametrize("family", KINDS)
def test_logp_is_that_of_transformers_alone(family: str, tmp_path: Path):
    model_of(family, TOKENS).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), revision=None, dtype="float32", key="student.model")
    ours = TransformersSampler(root(model), stop_ids=(1,), pad_id=0, dtype="float32", max_batch_tokens=200)
    prompts = [Prompt(str(n), "", "", "", tuple(range(3, 3 + n))) for n in (4, 7, 17)]
    rollout = ours.sample(prompts, Sampling(2, 12, HOT, 1.0, 0), key=(1,))
    assert rollout.mask.sum(1).max() > 8, "beyond the window"
    scores = Scorer(root(model), ALONE, micro_batch_tokens=80, logit_chunk=7, temperature=1.0).scores(rollout)
    for found, temperature in ((scores.logp, 1.0), (rollout.rollout_logp, HOT)):
        expected = plain_logp(str(tmp_path), rollout, temperature=temperature)
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granite"])
def test_a_small_model_has_logits_of_realistic_size(family: str):
    with torch.no_grad():
        logits = model_of(family, TOKENS)(torch.arange(3, 27)[None]).logits
    assert float(logits.abs().max()) == pytest.approx(LARGEST_LOGIT, rel=0.05)
