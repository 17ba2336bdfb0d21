"""What a finished run leaves: a model with its tokenizer, its generation settings and a card; with adapters too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from opd import cli, evaluate
from opd.checkpoint import atomic
from opd.records.run_dir import RunDir
from opd.train import run_dir, train
from tests.integration.conftest import composed


@pytest.fixture(scope="module")
def finished(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with adapters, long enough to learn something."""
    outputs = tmp_path_factory.mktemp("outputs")
    config = composed(
        [
            *small_run,
            "lora=all_linear",
            "student.lora.rank=8",
            "optim.lr=0.02",
            "num_steps=24",
            "epochs=3",
            "evaluate.every=12",
            "name=a_run-with",
            f"paths.outputs={outputs}",
        ]
    )
    train(config)
    return run_dir(config)


def test_adapters_bring_student_and_teacher_nearer(finished: RunDir):
    kl = [line["divergence/reverse_kl"] for line in finished.metrics() if line["step"]]
    assert sum(kl[-4:]) / 4 < 0.8 * sum(kl[:4]) / 4


def test_the_base_weights_stay_and_final_has_what_was_learned(finished: RunDir, models: Path):
    base = load_file(models / "student" / "model.safetensors")
    final = load_file(finished.checkpoints / "final" / "model.safetensors")
    adapted = {name for name in base if not torch.equal(final[name], base[name])}
    assert base.keys() == final.keys() and adapted and all("_proj." in name for name in adapted)


def test_final_generates_as_it_was_examined(finished: RunDir):
    folder = finished.checkpoints / "final"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    settings, config = GenerationConfig.from_pretrained(folder), finished.config()["evaluate"]
    assert model.generation_config.eos_token_id == settings.eos_token_id == [tokenizer.eos_token_id]
    assert settings.do_sample and settings.temperature == config["temperature"]
    assert (settings.top_p, settings.top_k) == (config["top_p"], config["top_k"])
    assert atomic.find_damage(folder) is None


def test_the_card_names_what_was_done(finished: RunDir):
    text = (finished.checkpoints / "final" / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "transformers"
    assert body.strip().startswith(r"# a\_run-with")
    for wanted in ("| large |", "32 generated arithmetic problems", "rank 8, merged", finished.path.name):
        assert wanted.replace("_", r"\_") in body
    last = finished.metrics()[-1]
    assert f"| mean@2 | {finished.metrics()[0]['evaluate/mean@2']:.4f} | {last['evaluate/mean@2']:.4f} |" in body
    config = yaml.safe_load(body.split("```yaml\n")[1].split("\n```")[0])
    recorded = finished.config()
    recorded["student"]["model"] = "student"  # all but the places on this machine
    recorded["teacher"]["models"] = ["large"]
    recorded["scale"] |= {"teacher": "large", "ladder": ["small", "medium", "large"]}
    recorded["teacher"].pop("server", None)
    assert config == {key: value for key, value in recorded.items() if key not in ("paths", "tracker", "hub")}


def test_a_run_of_adapters_is_examined_at_its_end_and_at_any_checkpoint(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = []
    for step in ([], ["step=24"]):
        outputs = tmp_path / f"outputs{len(scores)}"
        monkeypatch.setattr("sys.argv", ["opd", f"run={finished.path}", *step, f"paths.outputs={outputs}"])
        cli.main(evaluate._main, evaluate.arguments)
        (folder,) = (outputs / "evaluate").iterdir()
        scores.append(RunDir(folder).metrics())
    assert scores[0] == scores[1] and len(scores[0]) == 1


def test_a_damaged_final_checkpoint_is_not_examined(finished: RunDir, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(finished.checkpoints / "final", copy / "checkpoints" / "final")
    (copy / "config.yaml").write_text(finished.config_file.read_text())
    (copy / "checkpoints" / "final" / "config.json").write_text("{}")
    with pytest.raises(cli.UserError, match=r"final: the checkpoint is damaged \(config.json has 2 bytes"):
        evaluate.arguments([f"run={copy}"])


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = composed([*small_run, f"paths.outputs={tmp_path}", "evaluate.benchmarks=[]"])
    flush, full = atomic._flush, [True]

    def flushed(path: Path) -> None:
        if "step_000002" in str(path) and full[0]:
            raise OSError(28, "No space left on device", str(path))
        flush(path)

    monkeypatch.setattr(atomic, "_flush", flushed)
    with pytest.raises(OSError, match="No space left") as raised:
        train(config)
    assert "free some space, then rerun the same command" in str(cli.disk_sentence(raised.value))
    folder = run_dir(config)
    status = folder.status()
    assert status.state == "failed" and "No space left" in str(status.error) and status.step in (2, 3)
    assert [each.name for each in folder.checkpoints.iterdir()] == ["step_000001"]
    full[0] = False
    assert train(config).state == "finished"
    assert [line["step"] for line in folder.metrics()] == [1, 2, 3, 4]
    assert json.loads((folder.checkpoints / "step_000004" / "state.json").read_text())["step"] == 4
