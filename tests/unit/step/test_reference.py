"""The reference of several teachers, from whole runs' own scores, against the enumeration of their distributions."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opd.model.load import load_model
from opd.records.run_dir import RunDir
from opd.step.assemble import assemble
from opd.step.loop import score, step
from tests.unit.small import ALONE
from tests.unit.step.scripted import config_of

TEMPERATURE = 0.7
PROGRESS = 0.3  # soft_switch: 0.4 of the first teacher and 0.6 of the second


def distributions(folder: Path, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    model = load_model(str(folder), revision=None, dtype="float32", key="teacher.models.0").double()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).softmax(-1)


def mixture(ensemble: str, each: list[Tensor]) -> Tensor:
    if ensemble == "soft_switch":
        return 0.4 * each[0] + 0.6 * each[1]
    if ensemble == "arithmetic":
        return (each[0] + each[1] + each[2]) / 3
    product = (each[0] * each[1] * each[2]) ** (1 / 3)
    return product / product.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("ensemble", "more"),
    [
        ("soft_switch", "support=full whitening=none"),
        ("arithmetic", "filter=teacher_entropy filter.p_min=50 filter.p_max=100"),
        ("geometric", "divergence=entropy_aware"),
        ("geometric", "support=topk whitening=none"),
    ],
)
def test_the_entropy_of_a_mixture_is_its_own_where_it_acts_or_distributions_are_at_hand(
    ensemble: str, more: str, scripted_models: Path, tmp_path: Path
):
    given = [f"ensemble={ensemble}", f"rollout.temperature={TEMPERATURE}", "filter.exclude_special=false"]
    run = assemble(config_of(scripted_models, *given, *more.split()), RunDir(tmp_path / "run"), ALONE)
    scored, _ = score(run, run.prompts[:4], None, PROGRESS, (0, 1))
    rollout, wrong = scored.rollout, torch.zeros_like(scored.reference_entropy)
    for row, mask in enumerate(rollout.mask):
        prompt = rollout.prompt[row][rollout.prompt_mask[row]].tolist()
        tokens = rollout.tokens[row][mask]
        names = ("small", "medium", "large")
        each = [distributions(scripted_models / name, prompt, tokens.tolist()) for name in names]
        mixed = mixture(ensemble, each)
        entropy = -(mixed * mixed.log()).sum(-1)
        assert scored.reference_entropy[row][mask].double() == pytest.approx(entropy, abs=1e-4)
        if ensemble in ("soft_switch", "arithmetic"):
            sampled = mixed.gather(1, tokens[:, None])[:, 0].log()
            assert scored.reference_logp[row][mask].double() == pytest.approx(sampled, abs=1e-4)
        weights = [0.4, 0.6, 0.0] if ensemble == "soft_switch" else [1 / 3] * 3
        wrong[row][mask] = sum(weight * -(p * p.log()).sum(-1) for weight, p in zip(weights, each, strict=True)).to(
            wrong
        )
    assert float((scored.reference_entropy - wrong)[rollout.mask].abs().max()) > 0.01  # the mean is another number
    metrics = step(run, 2)
    assert metrics["entropy/teacher"] > 0 and "entropy/teachers_mean" not in metrics
