"""Models that are wider than the run's vocabulary, sampled from and scored by vLLM: as those cut to it by us."""

from functools import partial
from pathlib import Path

import pytest
import torch

from opd.model.load import check_weights, load_model
from opd.model.policy import Scorer
from opd.model.widths import cut
from opd.teacher.local import LocalTeachers
from opd.teacher.vllm import VllmScorer, VllmTeachers
from opd.teacher.vllm_widths import narrow_loading
from tests.unit.rollout.families import PLAIN, VOCAB, prompts
from tests.unit.rollout.test_sampler import reference_logp
from tests.unit.small import ALONE, rollout_of, root
from tests.vllm.models import build
from tests.vllm.test_teachers import BOUND, ENGINE

WIDE = VOCAB + 4


def wide(*, tied: bool):
    """A model whose further rows are likelier than the others."""
    model = build("qwen3-tied" if tied else "qwen3", vocab_size=WIDE)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCAB:] *= 2  # pyright: ignore
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_wider_student_is_sampled_from_over_the_vocabulary(tied: bool, start):
    model = wide(tied=tied)
    cut(model, VOCAB, key="student.model")
    sampler = start(model)
    rollout = sampler.sample(prompts(20), PLAIN, key=(1,))
    assert rollout.tokens.max() < VOCAB
    gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
    assert gap.max() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_wider_teacher_scores_as_one_that_we_cut(tied: bool, tmp_path: Path):
    wide(tied=tied).save_pretrained(tmp_path)
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, VOCAB, (length,), generator=draw).tolist() for length in (9, 30, 4, 150)]
    rollout = rollout_of([row[:3] for row in rows], [row[3:] for row in rows])
    key = "teacher.models.0"

    def local(narrow: bool) -> torch.Tensor:
        model = load_model(str(tmp_path), revision=None, dtype="float32", key=key)
        if narrow:
            cut(model, VOCAB, key=key)
        scorer = Scorer(root(model), ALONE, micro_batch_tokens=512, logit_chunk=64, temperature=1.0)
        return LocalTeachers([lambda: scorer]).score(rollout, [0]).logp[0][rollout.mask]  # pyright: ignore

    narrow = partial(narrow_loading, check_weights(str(tmp_path), revision=None, key=key), VOCAB)
    knobs = {**ENGINE, "dtype": "float32", "revision": None, "longest": 230, "key": key, "likeliest": VOCAB}
    teachers = VllmTeachers([lambda: VllmScorer(str(tmp_path), narrow=narrow, **knobs)], ALONE)
    try:
        found = teachers.score(rollout, [0])
    finally:
        teachers.close()
    assert (found.logp[0][rollout.mask] - local(True)).abs().max() < BOUND
    assert (found.logp[0][rollout.mask] - local(False)).abs().max() > 0.1, "uncut, its scores would be others"
    assert found.top[0].ids.max() < VOCAB, "of the likeliest none lies beyond"
    assert torch.allclose(found.top[0].logp[:, 1:].exp().sum(1), torch.ones(len(found.top[0].logp)), atol=1e-4)
