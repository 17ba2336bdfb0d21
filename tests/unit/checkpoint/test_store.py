import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from opd.checkpoint import store as checkpoint
from opd.checkpoint.atomic import write_folder
from opd.checkpoint.steps import Progress, newest_intact, prune, saved_steps, step_folder
from opd.checkpoint.store import Learned
from opd.config.schema import Optim
from opd.errors import UserError
from opd.model.optim import Optimizer
from opd.recipes.tokenizer import build_tokenizer
from tests.unit.small import ALONE, tiny_qwen3

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


def save(folder: Path, model, optimizer: Optimizer, state: Progress) -> None:
    checkpoint.resumable(Learned(model, "base", build_tokenizer(), optimizer), state, ALONE)(folder, ALONE)


@pytest.mark.parametrize("tie", [True, False])
def test_what_is_loaded_goes_on_exactly_as_what_was_saved(tie: bool, tmp_path: Path):
    model, optimizer = trained(0, tie=tie)
    save(tmp_path / "step_000002", model, optimizer, Progress(2, None, None))
    other, other_optimizer = trained(1, tie=tie, steps=0)
    loaded = Learned(other, "base", build_tokenizer(), other_optimizer)
    assert checkpoint.load(tmp_path / "step_000002", loaded) == Progress(2, None, None)
    for one, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        one(torch.tensor([[5, 6]])).logits.square().mean().backward()
        its_optimizer.step(3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_order_of_what_is_loaded_does_not_depend_on_the_process(tmp_path: Path):
    save(tmp_path / "step_000002", *trained(0), Progress(2, None, None))
    model, optimizer = trained(1, steps=0)
    checkpoint.load(tmp_path / "step_000002", Learned(model, "base", build_tokenizer(), optimizer))
    loaded = [str(index) for index in optimizer.adamw.state_dict()["state"]]
    assert len(loaded) > 9 and loaded == sorted(loaded)


def test_what_is_written_is_what_was_learned_when_it_was_taken(tmp_path: Path):
    model, optimizer = trained(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write = checkpoint.resumable(Learned(model, "base", build_tokenizer(), optimizer), Progress(2, None, None), ALONE)
    model(torch.tensor([[5, 6]])).logits.square().mean().backward()
    optimizer.step(3)
    write(tmp_path / "step_000002", ALONE)
    other, other_optimizer = trained(1, steps=0)
    checkpoint.load(tmp_path / "step_000002", Learned(other, "base", build_tokenizer(), other_optimizer))
    for name, tensor in before.items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert float(other_optimizer.adamw.state_dict()["state"][0]["step"]) == 2


def test_a_save_that_dies_leaves_nothing_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizer = trained(0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "step_000001", model, optimizer, Progress(1, None, None))
    assert list(tmp_path.iterdir()) == [] and saved_steps(tmp_path) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    model, optimizer = trained(0)
    save(tmp_path / "step_000001", model, optimizer, Progress(1, None, None))
    other = tiny_qwen3(vocab_size=17, tie=True, dtype=torch.float32)
    loaded = Learned(other, "base", build_tokenizer(), Optimizer(other, OPTIM, num_steps=1))
    with pytest.raises(UserError, match="step_000001: the checkpoint cannot be read"):
        checkpoint.load(tmp_path / "step_000001", loaded)


def test_an_interrupt_while_loading_is_no_fault_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizer = trained(0)
    save(tmp_path / "step_000001", model, optimizer, Progress(1, None, None))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.HuggingFaceStorageReader, "read_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(tmp_path / "step_000001", Learned(model, "base", build_tokenizer(), optimizer))


def progress(step: int) -> str:
    return json.dumps({"step": step, "best_step": None, "best_score": None})


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(tmp_path: Path):
    assert newest_intact(tmp_path, pytest.fail) is None
    for step in (1, 2, 3):
        write_folder(
            step_folder(tmp_path, step),
            ALONE,
            fill=lambda part, step=step: (part / "state.json").write_text(progress(step)),
            finish=lambda part: None,
        )
    assert newest_intact(tmp_path, pytest.fail) == 3
    warned: list[str] = []
    (tmp_path / "step_000003" / "state.json").write_text(progress(4))
    assert newest_intact(tmp_path, warned.append) == 2
    assert len(warned) == 1 and "step_000003: the checkpoint is damaged (state.json differs from what" in warned[0]
    (tmp_path / "step_000002" / "state.json").unlink()
    (tmp_path / "step_000001" / "checksums.json").unlink()
    with pytest.raises(
        UserError, match=r"step_000001: the checkpoint is damaged .*, and there is none before it; delete"
    ):
        newest_intact(tmp_path, warned.append)


def test_a_checkpoint_is_of_the_step_that_its_folder_names(tmp_path: Path):
    model, optimizer = trained(0)
    save(tmp_path / "step_000004", model, optimizer, Progress(4, 2, 0.5))
    shutil.copytree(tmp_path / "step_000004", tmp_path / "step_000099")
    warned: list[str] = []
    assert newest_intact(tmp_path, warned.append) == 4
    assert "step_000099: the checkpoint is damaged (it is the checkpoint of step 4)" in warned[0]


@pytest.mark.parametrize("sums", [{}, None])
def test_checksums_without_the_weights_are_damage(sums: dict | None, tmp_path: Path):
    model, optimizer = trained(0)
    save(folder := tmp_path / "step_000004", model, optimizer, Progress(4, None, None))
    kept = json.loads((folder / "checksums.json").read_text())
    kept.pop("model.safetensors")
    (folder / "checksums.json").write_text(json.dumps(kept if sums is None else sums))
    with pytest.raises(UserError, match=r"damaged \(model.safetensors is not in checksums.json\)"):
        newest_intact(tmp_path, pytest.fail)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in (1, 2, 3, 4, 5):
        step_folder(tmp_path, step).mkdir()
    (tmp_path / ".step_000006.part").mkdir()
    prune(tmp_path, keep=2, best=2)
    assert saved_steps(tmp_path) == [2, 4, 5]
