import os
from pathlib import Path

import pytest
import torch

from opd.config import Optim
from opd.data.tokenizer import build_tokenizer
from opd.engine import checkpoint
from opd.engine.optim import Optimizer
from opd.errors import UserError
from tests.unit.engine.conftest import ALONE, tiny_qwen3

OPTIM = Optim(
    lr=0.01, schedule="constant", warmup_steps=0, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.0, grad_clip=1.0
)


def trained(seed: int, *, tie: bool = True, steps: int = 2):
    model = tiny_qwen3(seed=seed, tie=tie, dtype=torch.float32)
    optimizer = Optimizer(model, OPTIM, num_steps=10)
    for step in range(1, steps + 1):
        model(torch.tensor([[2, 3, 4]])).logits.square().mean().backward()
        optimizer.step(step)
    return model, optimizer


@pytest.mark.parametrize("tie", [True, False])
def test_what_is_loaded_goes_on_exactly_as_what_was_saved(tie: bool, tmp_path: Path):
    model, optimizer = trained(0, tie=tie)
    checkpoint.save(tmp_path / "step_000002", model, build_tokenizer(), optimizer, {"step": 2}, ALONE)
    other, other_optimizer = trained(1, tie=tie, steps=0)
    assert checkpoint.load(tmp_path / "step_000002", other, other_optimizer) == {"step": 2}
    for one, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        one(torch.tensor([[5, 6]])).logits.square().mean().backward()
        its_optimizer.step(3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_save_that_dies_leaves_nothing_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizer = trained(0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "step_000001", model, build_tokenizer(), optimizer, {}, ALONE)
    assert list(tmp_path.iterdir()) == [] and checkpoint.saved_steps(tmp_path) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    model, optimizer = trained(0)
    checkpoint.save(tmp_path / "step_000001", model, build_tokenizer(), optimizer, {}, ALONE)
    other = tiny_qwen3(vocab_size=17, tie=True, dtype=torch.float32)
    with pytest.raises(UserError, match="step_000001: the checkpoint cannot be read"):
        checkpoint.load(tmp_path / "step_000001", other, Optimizer(other, OPTIM, num_steps=1))


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in (1, 2, 3, 4, 5):
        checkpoint.step_folder(tmp_path, step).mkdir()
    (tmp_path / ".step_000006.part").mkdir()
    checkpoint.prune(tmp_path, keep=2, best=2)
    assert checkpoint.saved_steps(tmp_path) == [2, 4, 5]
